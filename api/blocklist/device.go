package blocklist

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"math"
)

// DeviceHeaderBytes is the length of the commit record at the start of a Block volume; the list follows it.
const DeviceHeaderBytes = 4096

const deviceMagic = "\x89CBLDEV\n"

// deviceVersion is the version of the commit record, which does not follow that of the formats.
const deviceVersion = 1

// The commit record's fields, little-endian, by their offsets. All lie in the first 512 bytes, which every device writes
// as a whole; the rest of the record is zero.
const (
	deviceVersionAt   = 8
	deviceListStartAt = 12
	deviceListBytesAt = 16
	deviceSHA256At    = 24
	deviceCRCAt       = 56
	deviceUsedBytes   = 60
)

// DeviceRecord returns the commit record of a Block volume: what is written to its first DeviceHeaderBytes bytes once
// the list of listBytes bytes with the digest sha256 was written and synced behind them. Until then these bytes are
// zero, and Open finds no list.
func DeviceRecord(listBytes int64, sha256 [32]byte) []byte {
	b := make([]byte, DeviceHeaderBytes)
	copy(b, deviceMagic)
	binary.LittleEndian.PutUint32(b[deviceVersionAt:], deviceVersion)
	binary.LittleEndian.PutUint32(b[deviceListStartAt:], DeviceHeaderBytes)
	binary.LittleEndian.PutUint64(b[deviceListBytesAt:], uint64(listBytes))
	copy(b[deviceSHA256At:], sha256[:])
	binary.LittleEndian.PutUint32(b[deviceCRCAt:], crc32.Checksum(b[:deviceCRCAt], castagnoli))
	return b
}

// deviceRecord is a commit record that was read.
type deviceRecord struct {
	listBytes int64
	sha256    [32]byte
}

// parseDeviceRecord takes the first DeviceHeaderBytes bytes of a volume, which begin with deviceMagic.
func parseDeviceRecord(b []byte) (deviceRecord, error) {
	if len(b) < DeviceHeaderBytes {
		return deviceRecord{}, fmt.Errorf("%w: it ends at byte %d, inside the commit record", ErrIncomplete, len(b))
	}
	if got, want := crc32.Checksum(b[:deviceCRCAt], castagnoli), binary.LittleEndian.Uint32(b[deviceCRCAt:]); got != want {
		return deviceRecord{}, fmt.Errorf("%w: the commit record's CRC32C is %08x, it should be %08x", ErrCorrupt, got, want)
	}
	if v := binary.LittleEndian.Uint32(b[deviceVersionAt:]); v > deviceVersion {
		return deviceRecord{}, fmt.Errorf("%w: the commit record has %d; this reader knows versions up to %d", ErrVersion, v, deviceVersion)
	}
	r := deviceRecord{
		listBytes: int64(binary.LittleEndian.Uint64(b[deviceListBytesAt:])),
		sha256:    [32]byte(b[deviceSHA256At:]),
	}
	if r.listBytes < 0 || r.listBytes > math.MaxInt64-DeviceHeaderBytes || !bytes.Equal(b, DeviceRecord(r.listBytes, r.sha256)) {
		return deviceRecord{}, fmt.Errorf("%w: the commit record is not in its canonical form", ErrCorrupt)
	}
	return r, nil
}

// findList returns the part of a file or volume of size bytes that holds the list, and the commit record if there is
// one.
func findList(r io.ReaderAt, size int64) (*io.SectionReader, *deviceRecord, error) {
	first := make([]byte, min(size, DeviceHeaderBytes))
	if _, err := io.ReadFull(io.NewSectionReader(r, 0, size), first); err != nil {
		return nil, nil, fmt.Errorf("read the first %d bytes: %w", len(first), err)
	}
	if bytes.HasPrefix(first, []byte(deviceMagic)) {
		record, err := parseDeviceRecord(first)
		if err != nil {
			return nil, nil, err
		}
		if record.listBytes > size-DeviceHeaderBytes {
			return nil, nil, fmt.Errorf("%w: the commit record announces a list of %d bytes, the volume has room for %d",
				ErrIncomplete, record.listBytes, size-DeviceHeaderBytes)
		}
		return io.NewSectionReader(r, DeviceHeaderBytes, record.listBytes), &record, nil
	}
	if size > 0 && len(bytes.TrimLeft(first, "\x00")) == 0 {
		return nil, nil, fmt.Errorf("%w: its first bytes are zero: no list was committed to this volume", ErrNotAList)
	}
	return io.NewSectionReader(r, 0, size), nil, nil
}

// check compares the list that was read with what the record announced. The list's own checks have found it whole, so
// a difference means that the two do not belong together.
func (r *deviceRecord) check(t Trailer) error {
	if r != nil && (t.ListBytes != r.listBytes || t.ListSHA256 != r.sha256) {
		return fmt.Errorf("%w: the commit record is that of another list (%d bytes, sha256 %x)", ErrCorrupt, r.listBytes, r.sha256)
	}
	return nil
}
