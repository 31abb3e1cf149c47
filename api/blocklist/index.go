package blocklist

import "encoding/binary"

// point says where in a list a run of chunks begins.
type point struct {
	position int64 // byte of the list at which the chunk's record (JSON: the extent's line) begins
	offset   int64 // byte offset of its first extent
	changed  int64 // sum of the lengths of all extents before it
}

// index knows where every stride-th chunk of a list begins. It never holds more than layout.indexPoints points: when it
// is full, every other point goes and the stride doubles. So it takes constant memory, and is still a function of the
// extents alone. JSON lists have no chunks in their bytes; for them a chunk is a run of as many extents.
type index struct {
	layout layout
	stride int64
	chunks int64
	points []point
}

func newIndex(l layout) index { return index{layout: l, stride: 1} }

// next tells the index of the next chunk.
func (x *index) next(p point) {
	if x.chunks%x.stride == 0 && len(x.points) == x.layout.indexPoints {
		for i := range len(x.points) / 2 {
			x.points[i] = x.points[2*i]
		}
		x.points = x.points[:len(x.points)/2]
		x.stride *= 2
	}
	// The number of points is even when it is halved, so this chunk still falls on the doubled stride.
	if x.chunks%x.stride == 0 {
		x.points = append(x.points, p)
	}
	x.chunks++
}

// entry returns how many extents precede point i.
func (x *index) entry(i int) int64 { return int64(i) * x.stride * int64(x.layout.chunkEntries) }

// appendTo appends the Index message. The last chunk ends at byte end of the list; changed is the list's sum of lengths.
func (x *index) appendTo(b []byte, end, changed int64) []byte {
	if len(x.points) == 0 {
		return b
	}
	b = appendUint(b, indexStride, uint64(x.stride))
	column := func(field int, value func(p, next point) int64) {
		var packed []byte
		for i, p := range x.points {
			next := point{position: end, changed: changed}
			if i+1 < len(x.points) {
				next = x.points[i+1]
			}
			packed = binary.AppendUvarint(packed, uint64(value(p, next)))
		}
		b = appendBytes(b, field, packed)
	}
	column(indexListBytes, func(p, next point) int64 { return next.position - p.position })
	previous := int64(0)
	column(indexFirstOffset, func(p, _ point) int64 {
		step := p.offset - previous
		previous = p.offset
		return step
	})
	column(indexChangedBytes, func(p, next point) int64 { return next.changed - p.changed })
	return b
}
