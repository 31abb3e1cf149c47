package extents

import "testing"

func TestFrom(t *testing.T) {
	l := New(patternLength + 1000)
	for _, i := range []int64{0, 1, 7, patternLength - 1, patternLength, patternLength + 1, l.Count() - 1} {
		offset := l.Offset(i)
		for _, c := range []struct{ at, want int64 }{{offset, i}, {offset + Size - 1, i}, {offset + Size, i + 1}, {offset - 1, i}} {
			if got := l.From(c.at); got != c.want {
				t.Errorf("From(%d) = %d, want %d", c.at, got, c.want)
			}
		}
	}
	if got := l.From(l.Capacity()); got != l.Count() {
		t.Errorf("From(capacity) = %d, want %d", got, l.Count())
	}
}

func TestAscendingWithGaps(t *testing.T) {
	l := New(patternLength + 10)
	for i := int64(1); i < l.Count(); i++ {
		if l.Offset(i) <= l.Offset(i-1)+Size {
			t.Fatalf("extent %d begins at %d, the one before it at %d", i, l.Offset(i), l.Offset(i-1))
		}
	}
	if end := l.Offset(l.Count()-1) + Size; end > l.Capacity() {
		t.Errorf("the last extent ends at %d, the capacity is %d", end, l.Capacity())
	}
}

// TestComparison notices whatever a reader may do wrong.
func TestComparison(t *testing.T) {
	const count = 100
	l := New(count)
	replay := func(block int64, change func(i int64, add func(offset, length int64) error) error) error {
		c := l.Compare(block)
		for i := range l.Count() {
			if err := change(i, c.Add); err != nil {
				return err
			}
		}
		return c.Done()
	}
	if err := replay(0, func(i int64, add func(int64, int64) error) error { return add(l.Offset(i), Size) }); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(int64, func(int64, int64) error) error{
		"one is missing": func(i int64, add func(int64, int64) error) error {
			if i == 50 {
				return nil
			}
			return add(l.Offset(i), Size)
		},
		"the last is missing": func(i int64, add func(int64, int64) error) error {
			if i == count-1 {
				return nil
			}
			return add(l.Offset(i), Size)
		},
		"one is longer": func(i int64, add func(int64, int64) error) error { return add(l.Offset(i), Size+i/99) },
		"one comes twice": func(i int64, add func(int64, int64) error) error {
			if err := add(l.Offset(i), Size); err != nil || i != count-1 {
				return err
			}
			return add(l.Offset(i), Size)
		},
	} {
		if replay(0, change) == nil {
			t.Errorf("%s: not noticed", name)
		}
	}
}

func TestComparisonOfBlocks(t *testing.T) {
	const block = 1 << 20
	l := New(10_000)
	c := l.Compare(block)
	last := int64(-1)
	for i := range l.Count() {
		if b := l.Offset(i) / block; b != last {
			if err := c.Add(b*block, block); err != nil {
				t.Fatal(err)
			}
			last = b
		}
	}
	if err := c.Done(); err != nil {
		t.Error(err)
	}
}
