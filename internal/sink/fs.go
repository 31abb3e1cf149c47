package sink

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// fileSystem is what File and Device do to the machine, one method for each step between which it can stop.
type fileSystem interface {
	// Create makes a new file for writing; it fails if there is one.
	Create(path string) (file, error)
	// OpenDevice opens what exists, for reading and writing, and returns its size in bytes.
	OpenDevice(path string, allowRegular bool) (device, int64, error)
	// Remove fails with os.ErrNotExist if there is nothing to remove.
	Remove(path string) error
	Rename(from, to string) error
	// SyncDir makes creations, removals and renames in dir durable.
	SyncDir(dir string) error
}

type file interface {
	io.Writer
	Sync() error
	Close() error
}

type device interface {
	io.WriterAt
	Sync() error
	Close() error
}

// osFS is the machine's file system.
type osFS struct{}

func (osFS) Create(path string) (file, error) {
	// Backup pods read the list under other user IDs.
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (osFS) OpenDevice(path string, allowRegular bool) (device, int64, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, 0, err
	}
	block := info.Mode()&os.ModeDevice != 0 && info.Mode()&os.ModeCharDevice == 0
	if !block && (!allowRegular || !info.Mode().IsRegular()) {
		return nil, 0, fmt.Errorf("%s is not a block device", path)
	}
	flags := os.O_RDWR
	if block {
		// On a block device O_EXCL means: not while a file system on it is mounted.
		flags |= os.O_EXCL
	}
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return nil, 0, err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, 0, errors.Join(fmt.Errorf("find the size of %s: %w", path, err), f.Close())
	}
	return f, size, nil
}

func (osFS) Remove(path string) error { return os.Remove(path) }

func (osFS) Rename(from, to string) error { return os.Rename(from, to) }

func (osFS) SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
