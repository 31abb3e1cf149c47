package outcome

import (
	"math"
	"testing"
)

func TestProgressRoundTrip(t *testing.T) {
	want := Progress{Version: ProgressVersion, EntryCount: math.MaxInt64, OffsetBytes: math.MaxInt64, VolumeCapacityBytes: math.MaxInt64, ListBytes: math.MaxInt64, Resumes: math.MaxInt64}
	data, err := want.Marshal()
	if err != nil || len(data) > MaxProgressBytes {
		t.Fatalf("%d bytes, %v", len(data), err)
	}
	if got, err := ParseProgress(data); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{
		``, `[]`, `{}`, `{"version":2}`, `{"version":1,"entryCount":-1}`, `{"version":1,"offsetBytes":2,"volumeCapacityBytes":1}`, `{"version":1} {}`,
	} {
		if p, err := ParseProgress([]byte(bad)); err == nil {
			t.Errorf("%q is read as %+v", bad, p)
		}
	}
}

func TestPercent(t *testing.T) {
	for _, c := range []struct {
		offset, capacity int64
		want             int
	}{{0, 0, 0}, {0, 100, 0}, {999, 1000, 99}, {1000, 1000, 100}, {math.MaxInt64 / 2, math.MaxInt64, 50}, {math.MaxInt64, 1, 100}, {-1, 1, 0}} {
		if got := (Progress{OffsetBytes: c.offset, VolumeCapacityBytes: c.capacity}).Percent(); got != c.want {
			t.Errorf("%d of %d: %d %%, want %d", c.offset, c.capacity, got, c.want)
		}
	}
}
