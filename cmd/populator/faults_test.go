package main

import (
	"testing"

	"github.com/cbt-populator/cbt-populator/test/fakes"
)

const blockSize = 4096

// testVolume has 1,000 changed and 1,500 allocated blocks, some adjacent, and a capacity that they do not reach.
func testVolume(fixed bool) fakes.Volume {
	v := fakes.Volume{Namespace: testNamespace, Target: testTarget, Base: testBase, Capacity: 64 << 20, Fixed: fixed}
	for i := int64(0); i < 1500; i++ {
		e := fakes.Extent{Offset: i * 7 / 2 * blockSize, Size: blockSize}
		if !fixed && i%5 == 0 {
			e.Size = 3 * blockSize / 2
		}
		v.Allocated = append(v.Allocated, e)
		if i%3 != 0 {
			v.Delta = append(v.Delta, e)
		}
	}
	return v
}

func TestNoFault(t *testing.T) {
	for _, fixed := range []bool{true, false} {
		v := testVolume(fixed)
		s := newScene(t, fakes.Config{Volume: v, PerMessage: 64})
		s.wantList(t, s.run(t), expect(v))
	}
}
