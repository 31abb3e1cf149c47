package sink

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// DigestSuffix is what the name of the digest file adds to the list's.
const DigestSuffix = ".sha256"

// File is a sink on a mounted file system: the list as a file and, beside it, its digest in the form that
// `sha256sum -c` reads.
//
// Both are written and synced under names that start with a dot, then the list is renamed, then the digest. So a list
// under its name is whole, and a digest under its name has its list: the digest file never names a list that is not
// there. A volume on which only the second rename is missing holds a whole list, and a restarted populator starts clean.
type File struct {
	fs        fileSystem
	dir, name string
	f         file
	open      bool
	// placed is set when the list has or may have its name, committed when its digest has its own, too.
	placed, committed bool
	tally             tally
}

// NewFile returns a sink that commits the list as name in the folder dir. It first removes a list, a digest and temporary
// files of that name that an earlier run left there; other files are left alone.
func NewFile(dir, name string) (*File, error) { return newFile(osFS{}, dir, name) }

func newFile(fs fileSystem, dir, name string) (*File, error) {
	s := &File{fs: fs, dir: dir, name: name}
	if err := s.clean(append(s.placedPaths(), s.temporaryPaths()...)); err != nil {
		return nil, fmt.Errorf("clean up after an earlier run: %w", err)
	}
	f, err := fs.Create(s.tempPath())
	if err != nil {
		return nil, s.tally.wrap("create", s.tempPath(), 0, err)
	}
	s.f, s.open = f, true
	return s, nil
}

func (s *File) path() string           { return filepath.Join(s.dir, s.name) }
func (s *File) digestPath() string     { return s.path() + DigestSuffix }
func (s *File) tempPath() string       { return filepath.Join(s.dir, "."+s.name+".tmp") }
func (s *File) tempDigestPath() string { return filepath.Join(s.dir, "."+s.name+DigestSuffix+".tmp") }

// placedPaths are the list and its digest. That goes first, because it must not outlive the list.
func (s *File) placedPaths() []string { return []string{s.digestPath(), s.path()} }

func (s *File) temporaryPaths() []string { return []string{s.tempDigestPath(), s.tempPath()} }

// clean removes what is there of paths, durably one after the other.
func (s *File) clean(paths []string) error {
	for _, path := range paths {
		err := s.fs.Remove(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("remove %s: %w", path, err)
		}
		if err := s.fs.SyncDir(s.dir); err != nil {
			return fmt.Errorf("sync %s: %w", s.dir, err)
		}
	}
	return nil
}

// Write appends to the list.
func (s *File) Write(p []byte) (int, error) {
	if err := writeFull(s.f, p); err != nil {
		return 0, s.tally.wrap("write", s.tempPath(), len(p), err)
	}
	s.tally.add(p)
	return len(p), nil
}

// Commit implements Sink.
func (s *File) Commit(ctx context.Context, list List) error {
	if err := s.tally.check(ctx, s.path(), list); err != nil {
		return err
	}
	s.open = false
	if err := s.syncAndClose(s.f, s.tempPath()); err != nil {
		return err
	}
	if err := s.writeDigest(list); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	for _, step := range [][2]string{{s.tempPath(), s.path()}, {s.tempDigestPath(), s.digestPath()}} {
		err := s.fs.Rename(step[0], step[1])
		s.placed = s.placed || !errors.Is(err, os.ErrNotExist)
		if err != nil {
			return s.tally.wrap("rename", step[0], 0, err)
		}
		if err := s.fs.SyncDir(s.dir); err != nil {
			return s.tally.wrap("sync", s.dir, 0, err)
		}
	}
	s.committed = true
	return nil
}

func (s *File) writeDigest(list List) error {
	line := fmt.Sprintf("%x  %s\n", list.SHA256, s.name)
	f, err := s.fs.Create(s.tempDigestPath())
	if err != nil {
		return s.tally.wrap("create", s.tempDigestPath(), len(line), err)
	}
	if err := writeFull(f, []byte(line)); err != nil {
		return errors.Join(s.tally.wrap("write", s.tempDigestPath(), len(line), err), f.Close())
	}
	return s.syncAndClose(f, s.tempDigestPath())
}

func (s *File) syncAndClose(f file, path string) error {
	if err := f.Sync(); err != nil {
		return errors.Join(s.tally.wrap("sync", path, 0, err), f.Close())
	}
	if err := f.Close(); err != nil {
		return s.tally.wrap("close", path, 0, err)
	}
	return nil
}

// Abort implements Sink. A list that is there although this run has not named it is another run's: that of a successor, if this one's
// pod was thought dead.
func (s *File) Abort() error {
	if s.committed {
		return nil
	}
	var closed error
	if s.open {
		s.open = false
		closed = s.f.Close()
	}
	paths := s.temporaryPaths()
	if s.placed {
		paths = append(s.placedPaths(), paths...)
	}
	return errors.Join(closed, s.clean(paths))
}
