//go:build linux

package copier

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// journalFormat marks a file as a journal, so that no other file is overwritten.
const journalFormat = "kubectl-cbr-apply/3"

// entry is what a journal holds: which copy it belongs to, and how far that came. It does not say which target that went to: whatever
// has the name now holds what was copied, or does not, and the check finds out.
type entry struct {
	Format string `json:"format"`
	List   string `json:"list"`
	Shard  string `json:"shard"`
	Source string `json:"source"`
	// SourceBytes is its size.
	SourceBytes int64 `json:"sourceBytes"`
	// SourceVersion tells the source from any other that it was copied from under the same name; empty if nothing tells it.
	SourceVersion string `json:"sourceVersion"`
	// CopiedUpTo is the offset in the volume before which all extents are on the target, durably; CopiedXXH64 is the digest of
	// what was copied up to there, in hexadecimal. See position.
	CopiedUpTo  int64  `json:"copiedUpTo"`
	CopiedXXH64 string `json:"copiedXXH64"`

	empty bool // the target is, whatever was copied to it
}

// at returns how far the copy came, and whether the journal says it.
func (e entry) at() (_ position, ok bool) {
	digest, err := strconv.ParseUint(e.CopiedXXH64, 16, 64)
	if e.CopiedUpTo < 0 || err != nil {
		return position{}, false
	}
	return position{mark: e.CopiedUpTo, digest: digest}, true
}

// journal is the file that remembers how far a copy came. A nil journal remembers nothing.
type journal struct {
	path  string
	entry entry
}

// resolved returns the name of the file that path names, so that a rename replaces that and not a link to it.
func resolved(path string) string {
	if file, err := filepath.EvalSymlinks(path); err == nil {
		return file
	}
	return path
}

// checkJournal refuses a journal that is some other file or cannot be written, and changes nothing.
func checkJournal(path string) error {
	path = resolved(path)
	if _, _, err := readJournal(path); err != nil {
		return err
	}
	// It is replaced by a new file beside it. This one's name is its own: another copy may be writing the journal's.
	probe, err := os.CreateTemp(filepath.Dir(path), ".kubectl-cbr-*")
	if err != nil {
		return refuse("write journal: %w", err)
	}
	if err := errors.Join(probe.Close(), os.Remove(probe.Name())); err != nil {
		return refuse("write journal: %w", err)
	}
	return nil
}

// readJournal returns what the journal at path holds, if there is one.
func readJournal(path string) (old entry, found bool, err error) {
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return entry{}, false, nil
	case err != nil:
		return entry{}, false, refuse("read journal: %w", err)
	case json.Unmarshal(data, &old) != nil || !strings.HasPrefix(old.Format, "kubectl-cbr-apply/"):
		return entry{}, false, refuse("%s is not a journal of an earlier copy: name another file, or remove it", path)
	}
	return old, true, nil
}

// openJournal returns the journal at path, written anew, and the position from which the copy described by e goes on if a check
// finds what lies before it. If there is a journal that does not count, why says so.
func openJournal(path string, e entry) (j *journal, from position, why string, err error) {
	path = resolved(path)
	old, found, err := readJournal(path)
	if err != nil {
		return nil, from, "", err
	}
	if found {
		if why = e.differsFrom(old); why == "" {
			from, _ = old.at()
		}
		if from.mark > 0 {
			e.SourceVersion = old.SourceVersion // until the check has looked at this one
		}
	}
	j = &journal{path: path, entry: e}
	if err := j.save(from); err != nil {
		return nil, from, "", err
	}
	return j, from, why, nil
}

// differsFrom says why a copy described by e cannot go on where the one described by old ended; empty if it can, as far as
// can be seen without reading the target.
func (e entry) differsFrom(old entry) string {
	switch {
	case old.Format != e.Format:
		return "the journal was written by another version"
	case old.List != e.List:
		return "the journal is about another list"
	case old.Shard != e.Shard:
		return fmt.Sprintf("the journal is about shard %s", old.Shard)
	case old.Source != e.Source || old.SourceBytes != e.SourceBytes:
		return fmt.Sprintf("the journal is about another source (%s, %d bytes)", old.Source, old.SourceBytes)
	case e.empty && old.CopiedUpTo > 0:
		return "the target is empty"
	}
	if _, ok := old.at(); !ok {
		return "the journal does not say how far the copy came"
	}
	return ""
}

// save replaces the journal, durably and at once: there is always the old one or the new one.
func (j *journal) save(at position) (err error) {
	if j == nil {
		return nil
	}
	j.entry.CopiedUpTo, j.entry.CopiedXXH64 = at.mark, fmt.Sprintf("%016x", at.digest)
	data, err := json.MarshalIndent(j.entry, "", "  ")
	if err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	temporary := j.path + ".new"
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	_, err = f.Write(append(data, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(temporary, j.path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write journal: %w", err), os.Remove(temporary))
	}
	return syncDir(filepath.Dir(j.path))
}

// remove ends a copy that is complete.
func (j *journal) remove() error {
	if j == nil {
		return nil
	}
	if err := os.Remove(j.path); err != nil {
		return fmt.Errorf("remove journal: %w", err)
	}
	return syncDir(filepath.Dir(j.path))
}

// syncDir makes what was created, renamed or removed in dir durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	return nil
}
