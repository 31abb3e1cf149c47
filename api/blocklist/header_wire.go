package blocklist

import (
	"bytes"
	"fmt"
	"math"
)

// Numbers of the proto's enumerations. The block metadata types have those of the SnapshotMetadata API.
var (
	modeNumbers = map[Mode]uint64{Delta: 1, Allocated: 2}
	typeNumbers = map[BlockMetadataType]uint64{UnknownLength: 0, FixedLength: 1, VariableLength: 2}
)

// headerVersion is the number of the field that tells the format version, the first one in every version.
const headerVersion = 1

// headerItem is one field of the Header message: its number and a pointer into the Header, a *string, *int64, *bool,
// *Mode or *BlockMetadataType.
type headerItem struct {
	field int
	value any
}

// headerItems lists the fields after the version, in ascending order.
func headerItems(h *Header) []headerItem {
	return []headerItem{
		{2, &h.Mode},
		{3, &h.Driver},
		{4, &h.Namespace},
		{5, &h.BaseSnapshot},
		{6, &h.BaseSnapshotHandle},
		{7, &h.TargetSnapshot},
		{8, &h.TargetSnapshotHandle},
		{9, &h.BaseRestoreSizeBytes},
		{10, &h.TargetRestoreSizeBytes},
		{11, &h.GranularityBytes},
		{12, &h.Merged},
		{13, &h.BlockMetadataType},
		{14, &h.VolumeCapacityBytes},
	}
}

// appendHeader appends the Header message of h.
func appendHeader(b []byte, h Header) []byte {
	b = appendUint(b, headerVersion, FormatVersion)
	for _, item := range headerItems(&h) {
		switch v := item.value.(type) {
		case *string:
			b = appendBytes(b, item.field, *v)
		case *int64:
			b = appendUint(b, item.field, uint64(*v))
		case *bool:
			if *v {
				b = appendUint(b, item.field, 1)
			}
		case *Mode:
			b = appendUint(b, item.field, modeNumbers[*v])
		case *BlockMetadataType:
			b = appendUint(b, item.field, typeNumbers[*v])
		}
	}
	return b
}

// parseHeaderRecord decodes a Record with a Header. It demands that encoding the result gives the same bytes.
func parseHeaderRecord(record []byte) (Header, error) {
	field, body, err := openRecord(record)
	if err != nil {
		return Header{}, err
	}
	if field != headerField {
		return Header{}, fmt.Errorf("%w: the first record holds field %d", ErrCorrupt, field)
	}
	version, rest, _ := cutUint(body, headerVersion)
	if version > FormatVersion {
		return Header{}, fmt.Errorf("%w: %d; this reader knows versions up to %d", ErrVersion, version, FormatVersion)
	}
	var h Header
	for _, item := range headerItems(&h) {
		if rest, err = parseHeaderItem(rest, item); err != nil {
			return Header{}, err
		}
	}
	if err := h.Check(); err != nil {
		return Header{}, asCorrupt(err)
	}
	if !bytes.Equal(body, appendHeader(nil, h)) {
		return Header{}, fmt.Errorf("%w: it is not in its canonical form", ErrCorrupt)
	}
	return h, nil
}

func parseHeaderItem(b []byte, item headerItem) ([]byte, error) {
	if s, isString := item.value.(*string); isString {
		text, rest, ok := cutBytes(b, item.field)
		if !ok {
			return nil, fmt.Errorf("%w: field %d is broken", ErrCorrupt, item.field)
		}
		*s = string(text)
		return rest, nil
	}
	n, rest, ok := cutUint(b, item.field)
	if !ok || n > math.MaxInt64 {
		return nil, fmt.Errorf("%w: field %d is broken", ErrCorrupt, item.field)
	}
	switch v := item.value.(type) {
	case *int64:
		*v = int64(n)
	case *bool:
		*v = n != 0
	case *Mode:
		*v = named(modeNumbers, n)
	case *BlockMetadataType:
		*v = named(typeNumbers, n)
	}
	return rest, nil
}

// named returns the name that has the number n; empty, which Header.Check refuses, if none has.
func named[T ~string](numbers map[T]uint64, n uint64) T {
	for name, number := range numbers {
		if number == n {
			return name
		}
	}
	return ""
}
