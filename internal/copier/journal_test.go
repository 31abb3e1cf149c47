//go:build linux

package copier

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
)

// TestJournals has a copy begin again where a journal is about something else.
func TestJournals(t *testing.T) {
	rng := random(t)
	const capacity, copied = 4 << 20, 2 << 20
	extents := []blocklist.Extent{{Offset: 0, Length: capacity}}
	for _, c := range []struct {
		name  string
		spoil func(t *testing.T, o *Options)
		why   string
	}{
		{"nothing", func(*testing.T, *Options) {}, ""},
		{"target was made anew", func(t *testing.T, o *Options) {
			remove(t, o.Target)
		}, "the target is empty"},
		{"target was replaced", func(t *testing.T, o *Options) {
			other := writeFile(t, "other", make([]byte, capacity))
			if err := os.Rename(other, o.Target); err != nil {
				t.Fatal(err)
			}
		}, "no longer holds"},
		{"target has another inode and the same data", func(t *testing.T, o *Options) {
			if err := os.Rename(writeFile(t, "same", readFile(t, o.Target)), o.Target); err != nil {
				t.Fatal(err)
			}
		}, ""},
		{"source is another", func(t *testing.T, o *Options) {
			o.Source = writeFile(t, "source2", readFile(t, o.Source))
		}, "another source"},
		{"list is another", func(t *testing.T, o *Options) {
			o.List = writeList(t, capacity, []blocklist.Extent{{Offset: 0, Length: 4096}, {Offset: 4096, Length: capacity - 4096}})
		}, "another list"},
		{"shard is all there is", func(_ *testing.T, o *Options) { o.Shard = Shard{0, 1} }, ""},
		{"source was written over", func(t *testing.T, o *Options) {
			rewrite(t, o.Source, rng)
		}, "the source no longer holds"},
		{"source was written over, and the check of it interrupted", func(t *testing.T, o *Options) {
			rewrite(t, o.Source, rng)
			checks := 0
			interruptWhen(t, *o, func(p Progress) bool {
				if p.Phase == Checking && p.DoneBytes == p.TotalBytes {
					checks++
				}
				return checks == 1 && p.DoneBytes < p.TotalBytes // of the second check
			})
		}, "the source no longer holds"},
		{"source has another inode and the same data", func(t *testing.T, o *Options) {
			if err := os.Rename(writeFile(t, "same", readFile(t, o.Source)), o.Source); err != nil {
				t.Fatal(err)
			}
		}, ""},
		{"target was emptied", func(t *testing.T, o *Options) {
			truncate(t, o.Target, 0)
		}, "the target is empty"},
		{"target was cut and lengthened", func(t *testing.T, o *Options) {
			truncate(t, o.Target, 4096)
			truncate(t, o.Target, capacity)
		}, "no longer holds"},
		{"target was written over", func(t *testing.T, o *Options) {
			rewrite(t, o.Target, rng)
		}, "no longer holds"},
		{"a byte of the target was changed", func(t *testing.T, o *Options) {
			writeAt(t, o.Target, rng.Int64N(copied), func(b byte) byte { return b + 1 })
		}, "no longer holds"},
		{"target was changed behind what was copied", func(t *testing.T, o *Options) {
			writeAt(t, o.Target, copied+rng.Int64N(capacity-copied), func(b byte) byte { return b + 1 })
		}, ""},
		{"the journal says less than was copied", func(t *testing.T, o *Options) {
			edit(t, o.Journal, func(e *entry) { e.CopiedUpTo -= 4096 })
		}, "no longer holds"},
		{"the journal's shards were others", func(t *testing.T, o *Options) {
			edit(t, o.Journal, func(e *entry) { e.Format = "kubectl-cbr-apply/2" })
		}, "another version"},
		{"the journal has no digest", func(t *testing.T, o *Options) {
			edit(t, o.Journal, func(e *entry) { e.CopiedXXH64 = "" })
		}, "does not say how far"},
	} {
		t.Run(c.name, func(t *testing.T) {
			source := make([]byte, capacity)
			fill(rng, source)
			o := Options{
				List: writeList(t, capacity, extents), Source: writeFile(t, "source", source),
				Target: filepath.Join(t.TempDir(), "target"), Journal: filepath.Join(t.TempDir(), "journal"), Workers: 1, checkpointBytes: 1,
			}
			interrupt(t, o, copied)
			c.spoil(t, &o)
			var notices []string
			o.Notice = func(s string) { notices = append(notices, s) }
			result, err := Run(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			sameBytes(t, "target", readFile(t, o.Target), readFile(t, o.Source))
			if c.why == "" && (result.ResumedBytes != copied || result.ReadBytes != capacity-copied || len(notices) > 0) {
				t.Errorf("resumed at %d, want %d, and nothing before it read from the source; %+v, %q", result.ResumedBytes, copied, result, notices)
			}
			if c.why != "" && (result.ResumedBytes != 0 || !slices.ContainsFunc(notices, func(s string) bool { return strings.Contains(s, c.why) })) {
				t.Errorf("resumed at %d with notices %q, want to begin again because of %s", result.ResumedBytes, notices, c.why)
			}
		})
	}
}

// interrupt has a copy stop after at bytes, as by a signal.
func interrupt(t *testing.T, o Options, at int64) {
	t.Helper()
	interruptWhen(t, o, func(p Progress) bool { return p.DoneBytes == at })
}

func interruptWhen(t *testing.T, o Options, when func(Progress) bool) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	o.Progress = func(p Progress) {
		if when(p) {
			cancel()
		}
	}
	_, err := Run(ctx, o)
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "continues from") {
		t.Fatalf("error of a copy that was stopped: %v", err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

// rewrite gives a file other data of the same size, and leaves its inode.
func rewrite(t *testing.T, path string, rng *rand.Rand) {
	t.Helper()
	other := make([]byte, len(readFile(t, path)))
	fill(rng, other)
	changed := func() (stat unix.Stat_t) {
		if err := unix.Stat(path, &stat); err != nil {
			t.Fatal(err)
		}
		return stat
	}
	for before := changed(); changed().Ctim == before.Ctim; { // a clock that is read now and then
		if err := os.WriteFile(path, other, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func truncate(t *testing.T, path string, size int64) {
	t.Helper()
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

// writeAt changes one byte of a file or device.
func writeAt(t *testing.T, path string, offset int64, change func(byte) byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	_, err = f.ReadAt(b, offset)
	if err == nil {
		_, err = f.WriteAt([]byte{change(b[0])}, offset)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// edit changes a journal.
func edit(t *testing.T, path string, change func(*entry)) {
	t.Helper()
	var e entry
	err := json.Unmarshal(readFile(t, path), &e)
	if err != nil {
		t.Fatal(err)
	}
	change(&e)
	data, err := json.Marshal(e)
	if err == nil {
		err = os.WriteFile(path, data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestJournalsOfLists has a script apply two lists to one target, each with a journal of its own, and begin anew after the
// second one was interrupted: the first one's data is then where the second one had been copied to.
func TestJournalsOfLists(t *testing.T) {
	rng := random(t)
	const capacity = 4 << 20
	for _, device := range []bool{false, true} {
		t.Run(fmt.Sprintf("device %t", device), func(t *testing.T) {
			dir, old := t.TempDir(), make([]byte, capacity)
			fill(rng, old)
			target := writeFile(t, "target", old)
			if device {
				target = attach(t, target)
			}
			var days []Options
			want := old
			for day, extents := range [][]blocklist.Extent{
				{{Offset: 0, Length: 1 << 20}, {Offset: 3 << 20, Length: 4096}}, {{Offset: 1<<20 - 4096, Length: 3 << 20}},
			} {
				source := make([]byte, capacity)
				fill(rng, source)
				days = append(days, Options{
					List: writeList(t, capacity, extents), Source: writeFile(t, "source", source), Target: target,
					Journal: filepath.Join(dir, fmt.Sprint("journal-", day)), Workers: 1, checkpointBytes: 1,
				})
				want = apply(want, source, extents)
			}
			if _, err := Run(t.Context(), days[0]); err != nil {
				t.Fatal(err)
			}
			interrupt(t, days[1], 1<<20+4096)
			for day, o := range days {
				result, err := Run(t.Context(), o)
				if err != nil || result.ResumedBytes != 0 {
					t.Fatalf("day %d: %+v, %v", day, result, err)
				}
			}
			sameBytes(t, "target", readFile(t, target), want)
		})
	}
}

// TestAttachedAnew has the device of a target be another one of the same data when the copy goes on, as after a pod was moved.
func TestAttachedAnew(t *testing.T) {
	rng := random(t)
	const capacity, copied = 4 << 20, 2 << 20
	source, file := make([]byte, capacity), writeFile(t, "target", make([]byte, capacity))
	fill(rng, source)
	o := Options{
		List: writeList(t, capacity, []blocklist.Extent{{Offset: 0, Length: capacity}}), Source: writeFile(t, "source", source),
		Journal: filepath.Join(t.TempDir(), "journal"), Workers: 1, checkpointBytes: 1,
	}
	t.Run("the first one", func(t *testing.T) {
		o.Target = attach(t, file)
		interrupt(t, o, copied)
	})
	o.Target = attach(t, file)
	if result, err := Run(t.Context(), o); err != nil || result.ResumedBytes != copied {
		t.Errorf("%+v, %v", result, err)
	}
	sameBytes(t, "target", readFile(t, o.Target), source)
}

// TestEmptiedShards empties a target of which two shards had copied a part each: only the first one finds it empty.
func TestEmptiedShards(t *testing.T) {
	rng := random(t)
	const capacity, shards = 4 << 20, 2
	source := make([]byte, capacity)
	fill(rng, source)
	o := Options{
		List: writeList(t, capacity, []blocklist.Extent{{Offset: 0, Length: capacity}}), Source: writeFile(t, "source", source),
		Target: filepath.Join(t.TempDir(), "target"), Workers: 1, checkpointBytes: 1,
	}
	for i := range shards {
		o.Shard = Shard{Index: i, Total: shards}
		interrupt(t, o, 1<<20)
	}
	truncate(t, o.Target, 0)
	for i := range shards {
		o.Shard = Shard{Index: i, Total: shards}
		if result, err := Run(t.Context(), o); err != nil || result.ResumedBytes != 0 {
			t.Errorf("shard %d: %+v, %v", i, result, err)
		}
	}
	sameBytes(t, "target", readFile(t, o.Target), source)
}

// TestCheckFails has the target fail to be read by the check: the journal stays as it is, and counts again afterwards.
func TestCheckFails(t *testing.T) {
	rng := random(t)
	const capacity, copied = 4 << 20, 2 << 20
	source, file := make([]byte, capacity), writeFile(t, "target", make([]byte, capacity))
	fill(rng, source)
	o := Options{
		List: writeList(t, capacity, []blocklist.Extent{{Offset: 0, Length: capacity}}), Source: writeFile(t, "source", source),
		Target: attach(t, file), Journal: filepath.Join(t.TempDir(), "journal"), Workers: 1, checkpointBytes: 1,
	}
	interrupt(t, o, copied)
	whole, journal := readFile(t, file), readFile(t, o.Journal)
	truncate(t, file, 1<<20) // what a loop device has no file for, it cannot read
	if _, err := Run(t.Context(), o); !errors.Is(err, unix.EIO) || !strings.Contains(err.Error(), "continues from") {
		t.Fatalf("error %v", err)
	}
	sameBytes(t, "journal", readFile(t, o.Journal), journal)
	if err := os.WriteFile(file, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	if result, err := Run(t.Context(), o); err != nil || result.ResumedBytes != copied {
		t.Fatalf("%+v, %v", result, err)
	}
	sameBytes(t, "target", readFile(t, file), source)
}
