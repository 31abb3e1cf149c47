package build

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"path/filepath"
	"time"
)

// kept is a folder with the components that were built before, each named by its stamp: Go's build cache keeps packages but
// not what the linker makes of them, and linking Kubernetes takes a fresh checkout minutes. It lies in Go's build cache and
// goes with it. An empty string keeps nothing.
type kept string

// keepFor is how long a component is kept that nobody asks for, as Go keeps packages.
const keepFor = 5 * 24 * time.Hour

// keptIn returns the folder in the build cache that `go env GOCACHE` names.
func keptIn(cache string) kept {
	if !filepath.IsAbs(cache) {
		// Go's caching is switched off.
		return ""
	}
	return kept(filepath.Join(cache, "cbt-cluster"))
}

// take copies the component with this stamp to its place and reports whether there was one.
func (k kept) take(binary, stamp string) bool {
	if k == "" {
		return false
	}
	from := filepath.Join(string(k), stamp)
	if err := copyProgram(from, binary); err != nil {
		// It is built then, which tells what is wrong with the place.
		return false
	}
	now := time.Now()
	// Its age is all that this is about.
	_ = os.Chtimes(from, now, now)
	return dated(binary, stamp) == nil && writeStamp(binary, stamp) == nil
}

// dated gives a component with this stamp the time that it has in every checkout: Go keeps the result of a test that has looked at
// a program for as long as that has the same size and time.
func dated(binary, stamp string) error {
	h := fnv.New32a()
	_, _ = h.Write([]byte(stamp)) // it never fails
	at := time.Unix(int64(h.Sum32()>>4), 0)
	return os.Chtimes(binary, at, at)
}

// put keeps a component, and removes those that nobody has asked for since keepFor.
func (k kept) put(binary, stamp string) error {
	if k == "" {
		return nil
	}
	if err := os.MkdirAll(string(k), 0o755); err != nil {
		return fmt.Errorf("keep it: %w", err)
	}
	if err := errors.Join(dated(binary, stamp), copyProgram(binary, filepath.Join(string(k), stamp))); err != nil {
		return fmt.Errorf("keep it: %w", err)
	}
	entries, err := os.ReadDir(string(k))
	if err != nil {
		return fmt.Errorf("remove what is kept for too long: %w", err)
	}
	for _, entry := range entries {
		info, err := entry.Info()
		if err == nil && time.Since(info.ModTime()) > keepFor {
			// Another checkout may have been quicker.
			_ = os.Remove(filepath.Join(string(k), entry.Name()))
		}
	}
	return nil
}

// copyProgram writes the copy beside its place and renames it, so that no half of one is ever found there.
func copyProgram(from, to string) (err error) {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, source.Close()) }()
	fresh, err := os.CreateTemp(filepath.Dir(to), ".copy-*")
	if err != nil {
		return err
	}
	_, err = io.Copy(fresh, source)
	if err = errors.Join(err, fresh.Chmod(0o755), fresh.Close()); err == nil {
		err = os.Rename(fresh.Name(), to)
	}
	if err != nil {
		return errors.Join(err, os.Remove(fresh.Name()))
	}
	return nil
}
