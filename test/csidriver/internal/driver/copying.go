package driver

import (
	"errors"
	"fmt"
	"os"

	"github.com/cbt-populator/cbt-populator/test/csidriver/internal/ext4"
	"github.com/cbt-populator/cbt-populator/test/csidriver/internal/image"
	"github.com/cbt-populator/cbt-populator/test/csidriver/internal/loop"
	"github.com/cbt-populator/cbt-populator/test/csidriver/internal/store"
)

// copyVolume copies v's image to path. A mounted filesystem is frozen meanwhile, so that the copy is one moment's state
// and needs no recovery. A block volume's cache is written out before: what a writer does during the copy may or may not
// be in it. The caller holds v's lock.
func (d *Driver) copyVolume(v store.Volume, path string, size int64) error {
	release, err := d.quiesce(v)
	if err != nil {
		return err
	}
	return d.copyImage(d.store.Volumes.ImagePath(v.ID), path, size, release)
}

// copyImage copies an image, calls release (if there is one, in any case) as soon as the source is not needed any more,
// and makes the copy durable.
func (d *Driver) copyImage(from, to string, size int64, release func() error) (err error) {
	released := func() error {
		if release == nil {
			return nil
		}
		r := release
		release = nil
		return r()
	}
	defer func() { err = errors.Join(err, released()) }()
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }() // Opened for reading.
	dst, err := os.OpenFile(to, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o640)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	if err := image.Copy(d.life, dst, src, size); err != nil {
		return err
	}
	if err := released(); err != nil {
		return err
	}
	return dst.Sync()
}

// quiesce brings everything that was written to v into its image, and holds writers to its filesystem until release.
func (d *Driver) quiesce(v store.Volume) (release func() error, err error) {
	dev, attached, err := loop.Find(d.store.Volumes.ImagePath(v.ID))
	if err != nil || !attached {
		return nil, err
	}
	filesystems, _, err := deviceMounts(dev)
	if err != nil {
		return nil, err
	}
	if len(filesystems) == 0 {
		return nil, dev.Flush()
	}
	// On record before it happens: a driver killed in between must not leave the filesystem frozen for ever.
	v.Freezing = filesystems[0]
	if err := d.store.Volumes.Update(v); err != nil {
		return nil, err
	}
	mine, err := ext4.Freeze(v.Freezing)
	if err != nil {
		return nil, errors.Join(err, d.thaw(v))
	}
	if !mine {
		// A backup hook froze it, and will thaw it.
		v.Freezing = ""
		return nil, d.store.Volumes.Update(v)
	}
	return func() error {
		if err := d.thaw(v); err != nil {
			return fmt.Errorf("after copying volume %s: %w", v.ID, err)
		}
		return nil
	}, nil
}
