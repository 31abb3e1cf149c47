//go:build linux

package copier

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// openSource opens the source and refuses what is none.
func openSource(o Options) (*volume, error) {
	info, err := os.Stat(o.Source)
	if err != nil {
		return nil, refuse("source: %w", err)
	}
	if !isBlockDevice(info) && !info.Mode().IsRegular() {
		return nil, refuse("source %s is neither a block device nor a regular file", o.Source)
	}
	v, err := openVolume(o.Source, os.O_RDONLY, info, o.Buffered)
	if err != nil {
		return nil, refuse("source: %w", err)
	}
	return v, nil
}

// checkSource refuses a source that cannot be what the list is about.
func (c *task) checkSource() error {
	switch {
	case c.survey.end > c.source.size:
		return refuse("the list has an extent that ends at byte %d, source %s has %d bytes: it is another volume, or an older and smaller one",
			c.survey.end, c.source.path, c.source.size)
	case c.source.size != c.capacity && !c.options.Force:
		return refuse("the list is about a volume of %d bytes, source %s has %d: it is another volume, or one that was resized (--force copies nevertheless)",
			c.capacity, c.source.path, c.source.size)
	}
	if c.options.Force || !c.source.block {
		return nil
	}
	use, err := mountedForWriting(c.source)
	if err != nil {
		return refuse("find out whether source %s is mounted: %w", c.source.path, err)
	}
	if use != "" {
		return refuse("source %s is mounted for writing at %s: its data changes while it is copied; copy from a restored snapshot (--force copies nevertheless)",
			c.source.path, use)
	}
	return nil
}

// checkTarget refuses, without opening it for writing, a target that must not be written.
func (c *task) checkTarget() error {
	path := c.options.Target
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(path); err == nil {
			return refuse("target %s is a link to nothing", path)
		}
		if _, err := os.Stat(filepath.Dir(path)); err != nil {
			return refuse("target %s: %w", path, err)
		}
		return c.checkJournalIsApart(nil)
	}
	if err != nil {
		return refuse("target: %w", err)
	}
	if !isBlockDevice(info) && !info.Mode().IsRegular() {
		return refuse("target %s is neither a block device nor a regular file", path)
	}
	for _, other := range []struct{ role, path string }{{"list", c.options.List}, {"source", c.options.Source}} {
		related, err := related(path, other.path)
		if err != nil {
			return refuse("compare target and %s: %w", other.role, err)
		}
		if related != "" {
			return refuse("target %s and %s %s %s", path, other.role, other.path, related)
		}
	}
	if err := c.checkJournalIsApart(info); err != nil {
		return err
	}
	use, err := inUse(path, info)
	if err != nil {
		return refuse("find out whether target %s is in use: %w", path, err)
	}
	if use != "" {
		return refuse("target %s is in use: %s", path, use)
	}
	if size := info.Size(); info.Mode().IsRegular() && size != 0 && size != c.capacity && !c.options.Force {
		return refuse("the list is about a volume of %d bytes, target %s has %d: it is the image of another volume, or of one that was resized (--force writes nevertheless, and extends a smaller one)",
			c.capacity, path, size)
	}
	return nil
}

// checkJournalIsApart refuses a journal under the name of something else.
func (c *task) checkJournalIsApart(target fs.FileInfo) error {
	if c.options.Journal == "" {
		return nil
	}
	journal, err := os.Stat(c.options.Journal)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return refuse("journal: %w", err)
	}
	if !journal.Mode().IsRegular() || target != nil && os.SameFile(journal, target) {
		return refuse("journal %s is not a file of its own", c.options.Journal)
	}
	return nil
}

// openTarget opens a target that was checked, creates it if need be, and holds it against others.
func openTarget(o Options, capacity int64) (*volume, error) {
	info, err := os.Stat(o.Target)
	if errors.Is(err, fs.ErrNotExist) {
		return openFile(o, capacity)
	}
	if err != nil {
		return nil, refuse("target: %w", err)
	}
	if info.Mode().IsRegular() {
		return openFile(o, capacity)
	}
	flags := os.O_RDWR | unix.O_EXCL
	if !o.Shard.whole() {
		// Other shards may be written from this machine: look whether somebody else holds the device, and let go.
		if err := probe(o.Target); err != nil {
			return nil, err
		}
		flags = os.O_RDWR
	}
	v, err := openVolume(o.Target, flags, info, o.Buffered)
	if err != nil {
		return nil, refuseDevice(o.Target, err)
	}
	// A read-only device can be opened for writing.
	if readOnly, err := unix.IoctlGetInt(int(v.buffered.Fd()), unix.BLKROGET); err == nil && readOnly != 0 {
		return nil, errors.Join(refuse("target %s is read-only", o.Target), v.close())
	}
	if v.size < capacity {
		return nil, errors.Join(refuse("target %s has %d bytes, the list's volume %d: it is too small", o.Target, v.size, capacity), v.close())
	}
	return v, nil
}

// probe reports whether a device is held by somebody. Another shard's probe holds it, too, for an instant.
func probe(path string) error {
	var err error
	for range 20 {
		var f *os.File
		if f, err = os.OpenFile(path, os.O_RDWR|unix.O_EXCL, 0); err == nil {
			return f.Close()
		}
		if !errors.Is(err, unix.EBUSY) {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	return refuseDevice(path, err)
}

func refuseDevice(path string, err error) error {
	if errors.Is(err, unix.EBUSY) {
		return refuse("target %s is in use: it is mounted in another namespace, or another program holds it (see lsblk and /sys/class/block/*/holders): %w", path, err)
	}
	return refuse("target: %w", err)
}

// openFile opens or creates a target file, for nobody else to read, and gives it its size.
func openFile(o Options, capacity int64) (_ *volume, err error) {
	f, err := os.OpenFile(o.Target, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, refuse("target: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	how := unix.LOCK_EX
	if !o.Shard.whole() {
		how = unix.LOCK_SH
	}
	if err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return nil, refuse("another copy writes to target %s", o.Target)
	} else if err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOLCK) {
		return nil, refuse("lock target %s: %w", o.Target, err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("target: %w", err)
	}
	v := &volume{path: o.Target, buffered: f, size: info.Size(), fresh: info.Size() == 0}
	if v.size < capacity {
		if err := f.Truncate(capacity); err != nil {
			return nil, fmt.Errorf("give target %s its size of %d bytes: %w", o.Target, capacity, err)
		}
		v.size = capacity
	}
	// The file must be there before a journal says that it holds data.
	if err := v.Sync(); err != nil {
		return nil, err
	}
	return v, syncDir(filepath.Dir(o.Target))
}
