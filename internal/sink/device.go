package sink

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// DeviceHeaderBytes is the size of the first block of a device, which holds the commit record; the list follows it.
const DeviceHeaderBytes = 4096

// Device is a sink on a raw block device. The first block is zeroed durably before the list is written behind it, and
// becomes the commit record, durably, after the list is durable.
type Device struct {
	path      string
	d         device
	open      bool
	size      int64
	record    func(bytes int64, sum [32]byte) []byte
	committed bool
	tally     tally
}

// NewDevice returns a sink for the block device at path and refuses anything else there. record renders the commit record,
// at most DeviceHeaderBytes long, for a list of that size and digest.
func NewDevice(path string, record func(bytes int64, sum [32]byte) []byte) (*Device, error) {
	return newDevice(osFS{}, path, record, false)
}

// NewDeviceImage is NewDevice for a regular file that stands for a device, of a size that was set before.
func NewDeviceImage(path string, record func(bytes int64, sum [32]byte) []byte) (*Device, error) {
	return newDevice(osFS{}, path, record, true)
}

func newDevice(fs fileSystem, path string, record func(int64, [32]byte) []byte, allowRegular bool) (*Device, error) {
	d, size, err := fs.OpenDevice(path, allowRegular)
	if err != nil {
		return nil, fmt.Errorf("open device: %w", err)
	}
	s := &Device{path: path, d: d, open: true, size: size, record: record}
	if size < DeviceHeaderBytes {
		return nil, errors.Join(s.full(0), d.Close())
	}
	if err := s.writeHeader(nil); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return s, nil
}

// writeHeader makes content, filled up with zeros, the first block, durably.
func (s *Device) writeHeader(content []byte) error {
	var block [DeviceHeaderBytes]byte
	if copy(block[:], content) < len(content) {
		return fmt.Errorf("write the commit record of %s: it has %d bytes, the block %d", s.path, len(content), len(block))
	}
	if err := s.writeAt(block[:], 0); err != nil {
		return err
	}
	return s.sync()
}

func (s *Device) writeAt(p []byte, offset int64) error {
	n, err := s.d.WriteAt(p, offset)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return s.tally.wrap("write", s.path, len(p), err)
	}
	return nil
}

func (s *Device) sync() error {
	if err := s.d.Sync(); err != nil {
		return s.tally.wrap("sync", s.path, 0, err)
	}
	return nil
}

func (s *Device) full(more int) error {
	return &FullError{Path: s.path, NeededBytes: s.tally.bytes + int64(more), CapacityBytes: max(0, s.size-DeviceHeaderBytes)}
}

// Write appends to the list.
func (s *Device) Write(p []byte) (int, error) {
	if int64(len(p)) > s.size-DeviceHeaderBytes-s.tally.bytes {
		return 0, s.full(len(p))
	}
	if err := s.writeAt(p, DeviceHeaderBytes+s.tally.bytes); err != nil {
		return 0, err
	}
	s.tally.add(p)
	return len(p), nil
}

// Commit implements Sink.
func (s *Device) Commit(ctx context.Context, list List) error {
	if err := s.sync(); err != nil {
		return err
	}
	if err := s.tally.check(ctx, s.path, list); err != nil {
		return err
	}
	if err := s.writeHeader(s.record(list.Bytes, list.SHA256)); err != nil {
		return err
	}
	s.open = false
	if err := s.d.Close(); err != nil {
		return fmt.Errorf("close %s: %w", s.path, err)
	}
	s.committed = true
	return nil
}

// Abort implements Sink. The first block is zeroed again, because a commit may have failed after it wrote the record.
func (s *Device) Abort() error {
	if s.committed || !s.open {
		return nil
	}
	s.open = false
	return errors.Join(s.writeHeader(nil), s.d.Close())
}
