package listops

import (
	"cmp"
	"container/heap"
	"iter"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
)

// outExtents is how many extents a set operation collects before it hands them out.
const outExtents = 4096

// output collects extents, merges those that touch or overlap, and hands them out in batches.
type output struct {
	yield   func([]blocklist.Extent, error) bool
	batch   []blocklist.Extent
	pending blocklist.Extent
}

// add appends e, which begins no earlier than the one before, and reports whether more is wanted.
func (o *output) add(e blocklist.Extent) bool {
	if o.pending.Length > 0 && e.Offset <= o.pending.End() {
		o.pending.Length = max(o.pending.End(), e.End()) - o.pending.Offset
		return true
	}
	done := o.pending
	o.pending = e
	if done.Length > 0 {
		o.batch = append(o.batch, done)
	}
	if len(o.batch) < outExtents {
		return true
	}
	more := o.yield(o.batch, nil)
	o.batch = o.batch[:0]
	return more
}

// end hands out what is left, and err if it is one.
func (o *output) end(err error) {
	if o.pending.Length > 0 {
		o.batch = append(o.batch, o.pending)
	}
	if err == nil && len(o.batch) > 0 {
		o.yield(o.batch, nil)
	}
	if err != nil {
		o.yield(nil, err)
	}
}

// puller walks over extents one at a time.
type puller struct {
	next  func() ([]blocklist.Extent, error, bool)
	batch []blocklist.Extent
	// at is the extent, or what is left of it, that is next; its length is 0 at the end.
	at  blocklist.Extent
	err error
}

// pull returns a puller before its first extent, and the function that ends it.
func pull(in Extents) (*puller, func()) {
	next, stop := iter.Pull2(in)
	return &puller{next: next}, stop
}

// advance goes to the next extent and reports whether there is one.
func (p *puller) advance() bool {
	for len(p.batch) == 0 {
		var ok bool
		if p.batch, p.err, ok = p.next(); !ok || p.err != nil {
			p.at = blocklist.Extent{}
			return false
		}
	}
	p.at, p.batch = p.batch[0], p.batch[1:]
	return true
}

// queue is a heap of pullers by the offset of their next extents.
type queue []*puller

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return cmp.Less(q[i].at.Offset, q[j].at.Offset) }
func (q queue) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(x any)        { *q = append(*q, x.(*puller)) }
func (q *queue) Pop() any {
	last := len(*q) - 1
	p := (*q)[last]
	*q = (*q)[:last]
	return p
}

// Union returns the bytes that are in any of the lists, as merged extents.
func Union(lists ...Extents) Extents {
	return func(yield func([]blocklist.Extent, error) bool) {
		out := output{yield: yield}
		var q queue
		for _, in := range lists {
			p, stop := pull(in)
			defer stop()
			if p.advance() {
				q = append(q, p)
			} else if p.err != nil {
				out.end(p.err)
				return
			}
		}
		heap.Init(&q)
		for len(q) > 0 {
			p := q[0]
			if !out.add(p.at) {
				return
			}
			if p.advance() {
				heap.Fix(&q, 0)
				continue
			}
			if p.err != nil {
				out.end(p.err)
				return
			}
			heap.Pop(&q)
		}
		out.end(nil)
	}
}

// Difference returns the bytes that are in a and not in b, as merged extents.
func Difference(a, b Extents) Extents {
	return func(yield func([]blocklist.Extent, error) bool) {
		out := output{yield: yield}
		pa, stopA := pull(a)
		defer stopA()
		pb, stopB := pull(b)
		defer stopB()
		pb.advance()
		for pb.err == nil && pa.advance() {
			if !subtract(&out, pa.at, pb) {
				return
			}
		}
		out.end(cmp.Or(pa.err, pb.err))
	}
}

// subtract adds what of e is not in b, and leaves b at its first extent that ends behind e. It reports whether more is
// wanted; an error of b is in b.
func subtract(out *output, e blocklist.Extent, b *puller) bool {
	at := e.Offset
	for b.at.Length > 0 && b.at.Offset < e.End() {
		if b.at.Offset > at && !out.add(blocklist.Extent{Offset: at, Length: b.at.Offset - at}) {
			return false
		}
		if at = max(at, b.at.End()); at >= e.End() && b.at.End() > e.End() {
			return true
		}
		if !b.advance() && b.err != nil {
			return true
		}
	}
	return at >= e.End() || out.add(blocklist.Extent{Offset: at, Length: e.End() - at})
}
