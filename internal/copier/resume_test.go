//go:build linux

package copier

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/internal/listops"
	"github.com/cbt-populator/cbt-populator/test/size"
)

var crashes = flag.Int("crashes", 0, "how many copies TestPowerFailures has the power fail under; 0: 60, or 20 with -short")

// childEnv has the test program be a copy that its parent kills. It holds Options as JSON.
const childEnv = "COPIER_TEST_OPTIONS"

func TestMain(m *testing.M) {
	if spec := os.Getenv(childEnv); spec != "" {
		os.Exit(child(spec))
	}
	os.Exit(m.Run())
}

// child copies, and prints a line for every step of its progress.
func child(spec string) int {
	var o Options
	if err := json.Unmarshal([]byte(spec), &o); err != nil {
		fmt.Println(err)
		return 2
	}
	o.checkpointBytes = 64 << 10
	o.Progress = func(p Progress) {
		if p.Phase == Copying { // a parent that killed it while it checks would never see an end
			fmt.Println(p.DoneBytes)
		}
	}
	if _, err := Run(context.Background(), o); err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

// runAndKill runs a copy in a process of its own, and kills it after so many steps of its progress, but not before the journal has
// come beyond mark. It returns how much was copied at its first step, -1 for none, and whether the copy ended by itself.
func runAndKill(t *testing.T, o Options, steps int, mark int64) (first int64, ended bool) {
	t.Helper()
	spec, err := json.Marshal(struct {
		List, Source, Target, Journal string
		Workers                       int
	}{o.List, o.Source, o.Target, o.Journal, o.Workers})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+string(spec))
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	lines, last := bufio.NewScanner(out), ""
	first = -1
	for ; (steps > 0 || copiedUpTo(o.Journal) <= mark) && lines.Scan(); steps-- {
		last = lines.Text()
		if n, err := strconv.ParseInt(last, 10, 64); err == nil && first < 0 {
			first = n
		}
	}
	killErr := cmd.Process.Signal(syscall.SIGKILL)
	if killErr != nil && !errors.Is(killErr, os.ErrProcessDone) {
		t.Fatal(killErr)
	}
	if _, err := io.Copy(io.Discard, out); err != nil {
		t.Fatal(err)
	}
	err = cmd.Wait()
	if err != nil && !cmd.ProcessState.Sys().(syscall.WaitStatus).Signaled() {
		t.Fatalf("the copy failed: %v, last line %q", err, last)
	}
	return first, err == nil
}

// copiedUpTo returns how far a journal says that a copy came; -1 if it is not there.
func copiedUpTo(path string) int64 {
	var e entry
	if data, err := os.ReadFile(path); err != nil || json.Unmarshal(data, &e) != nil {
		return -1
	}
	return e.CopiedUpTo
}

// TestKills kills copies at random moments, again and again, until one ends by itself: what it leaves must be what a copy
// that nobody disturbs leaves, and later runs must not begin from nothing.
func TestKills(t *testing.T) {
	rng := random(t)
	const capacity = 12 << 20
	for _, device := range []bool{false, true} {
		t.Run(fmt.Sprintf("device %t", device), func(t *testing.T) {
			extents := randomExtents(rng, capacity, 512, 200)
			source, old := randomData(rng, capacity), make([]byte, capacity)
			o := Options{
				List: writeList(t, capacity, extents), Source: writeFile(t, "source", source), Workers: 1 + rng.IntN(4),
				Target: filepath.Join(t.TempDir(), "target"), Journal: filepath.Join(t.TempDir(), "journal"),
			}
			if device {
				fill(rng, old)
				o.Target = attach(t, writeFile(t, "target", old))
			}
			kills, resumed := 0, 0
			for ended := false; !ended; kills++ {
				mark, beyond, copied := copiedUpTo(o.Journal), int64(-2), int64(0)
				if kills%4 == 1 { // whoever is always killed before the first checkpoint gets nowhere
					beyond = max(0, mark)
				}
				for _, e := range extents {
					copied += max(0, min(e.End(), mark)-e.Offset)
				}
				var first int64
				if first, ended = runAndKill(t, o, rng.IntN(6), beyond); first >= 0 && first <= copied {
					t.Fatalf("%d bytes had been copied, and a later run had copied %d after its first step", copied, first)
				}
				if mark > 0 {
					resumed++
				}
				if kills == 200 {
					t.Fatal("200 kills, and no end: it does not continue")
				}
			}
			t.Logf("%d runs, %d of them continued", kills, resumed)
			sameBytes(t, "target", readFile(t, o.Target), apply(old, source, extents))
		})
	}
}

var errPower = errors.New("the power has failed")

// disk is a target that forgets what was not synced when the power fails, page by page and at random.
type disk struct {
	mu             sync.Mutex
	rng            *rand.Rand
	stored, cached []byte
	journal        position
	left           int // operations until the power fails
}

func (d *disk) step() error {
	d.left--
	if d.left < 0 {
		return errPower
	}
	return nil
}

func (d *disk) ReadAt(p []byte, offset int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return copy(p, d.cached[offset:]), nil
}

func (d *disk) WriteAt(p []byte, offset int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.step(); err != nil {
		return 0, err
	}
	return copy(d.cached[offset:], p), nil
}

func (d *disk) Zero(offset, n int64) error {
	_, err := d.WriteAt(make([]byte, n), offset)
	return err
}

func (d *disk) sync() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.step(); err != nil {
		return err
	}
	copy(d.stored, d.cached)
	return nil
}

func (d *disk) save(at position) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.step(); err != nil {
		return err
	}
	d.journal = at
	return nil
}

// fail leaves what a power failure leaves.
func (d *disk) fail() {
	for i := int64(0); i < int64(len(d.stored)); i += pageBytes {
		if d.rng.IntN(2) == 0 {
			copy(d.stored[i:], d.cached[i:min(i+pageBytes, int64(len(d.cached)))])
		}
	}
	d.cached = bytes.Clone(d.stored)
}

// digestUpTo returns what a check finds on a target up to mark.
func digestUpTo(t *testing.T, list *blocklist.File, target []byte, mark int64) position {
	t.Helper()
	c := &check{volume: bytes.NewReader(target)}
	w := &walk{workers: 3, do: c.read, checkpoint: func(position) error { return nil }, progress: func(Progress) {}}
	if err := w.run(t.Context(), listops.Clip(listops.Of(list.From(0)), listops.Range{To: mark})); err != nil {
		t.Fatal(err)
	}
	return w.at
}

// TestPowerFailures has the power fail after any operation: what the journal says is copied must be there, and found by a check,
// whatever else was lost, and a copy that continues from it must end right.
func TestPowerFailures(t *testing.T) {
	rng := random(t)
	const capacity = 3 << 20
	for range size.Or(*crashes, 60, 20) {
		extents := randomExtents(rng, capacity, 512, 100)
		source, old := randomData(rng, capacity), make([]byte, capacity)
		fill(rng, old)
		want := apply(old, source, extents)
		list, err := blocklist.Open(writeList(t, capacity, extents))
		if err != nil {
			t.Fatal(err)
		}
		d := &disk{rng: rng, stored: bytes.Clone(old), cached: bytes.Clone(old)}
		for err = errPower; err != nil; {
			d.left = rng.IntN(250)
			c := &copying{source: bytes.NewReader(source), target: d, summed: true}
			// One worker, because the disk is not made for more.
			w := &walk{workers: 1, at: d.journal, do: c.copy, checkpoint: durably(d.sync, d.save), every: 64 << 10, progress: func(Progress) {}}
			err = w.run(t.Context(), listops.Clip(listops.Of(list.From(d.journal.mark)), listops.Range{From: d.journal.mark, To: capacity}))
			if err != nil && !errors.Is(err, errPower) {
				t.Fatal(err)
			}
			d.fail()
			for _, e := range extents {
				if end := min(e.End(), d.journal.mark); end > e.Offset && !bytes.Equal(d.stored[e.Offset:end], want[e.Offset:end]) {
					t.Fatalf("the journal says %d, but what was copied to %d is lost", d.journal.mark, e.Offset)
				}
			}
			if found := digestUpTo(t, list, d.stored, d.journal.mark); found.digest != d.journal.digest {
				t.Fatalf("the check does not find what was copied up to %d", d.journal.mark)
			}
		}
		sameBytes(t, "target", d.stored, want)
		if err := list.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFailedSync has one checkpoint fail, and would have the next one succeed: that is how Linux reports lost data, so there
// must be no next one.
func TestFailedSync(t *testing.T) {
	const capacity = 8 << 20
	failed, after := false, 0
	w := &walk{
		workers: 2, every: 1, progress: func(Progress) {}, do: func(blocklist.Extent, *buffers) error { return nil },
		checkpoint: durably(func() error {
			if failed {
				after++
				return nil
			}
			failed = true
			return syscall.EIO
		}, func(position) error { t.Error("the journal was moved on"); return nil }),
	}
	extents := func(yield func([]blocklist.Extent, error) bool) {
		yield([]blocklist.Extent{{Offset: 0, Length: capacity}}, nil)
	}
	if err := w.run(t.Context(), extents); !errors.Is(err, syscall.EIO) || after != 0 {
		t.Errorf("error %v and %d syncs after the one that failed, want its error and none", err, after)
	}
}
