package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"golang.org/x/term"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/kubeaccess"
)

// errTimeout is the cause of a wait's end that took too long.
var errTimeout = errors.New("timeout")

// waiter follows a ChangedBlockRange, and a claim unless that is nil, until the claim is populated, or without one until the
// snapshots are found.
type waiter struct {
	show *progressView

	mu    sync.Mutex
	cbr   *v1alpha1.ChangedBlockRange
	claim *corev1.PersistentVolumeClaim
	// ended is closed by the first end; err says how.
	ended  chan struct{}
	closed bool
	err    error
}

// run returns nil when all is there, the failure that keeps it from coming, or the cause of ctx.
func (w *waiter) run(ctx context.Context, a *kubeaccess.Access) error {
	w.ended = make(chan struct{})
	ctx, cancel := context.WithCancel(ctx)
	var followers sync.WaitGroup
	cbr, claim := w.cbr, w.claim
	followers.Go(func() {
		w.end(a.FollowRange(ctx, cbr, w.seeRange, func() { w.end(fmt.Errorf("ChangedBlockRange %s was deleted", cbr.Name)) }))
	})
	if claim != nil {
		followers.Go(func() {
			w.end(a.FollowClaim(ctx, claim, w.seeClaim, func() { w.end(fmt.Errorf("claim %s was deleted", claim.Name)) }))
		})
	}
	var cause error
	select {
	case <-w.ended:
	case <-ctx.Done():
		cause = context.Cause(ctx)
	}
	cancel()
	followers.Wait()
	w.show.close()
	w.mu.Lock()
	defer w.mu.Unlock()
	if cause != nil {
		return cause
	}
	return w.err
}

// end ends the wait with err, the first one that is not nil. What following returns when its context has ended is nil, and no end.
func (w *waiter) end(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		w.finish(err)
	}
}

// finish ends the wait, well if err is nil, unless it has ended before.
func (w *waiter) finish(err error) {
	if !w.closed {
		w.closed, w.err = true, err
		close(w.ended)
	}
}

func (w *waiter) seeRange(cbr *v1alpha1.ChangedBlockRange) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cbr = cbr
	w.judge()
}

func (w *waiter) seeClaim(claim *corev1.PersistentVolumeClaim) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.claim = claim
	w.judge()
}

// judge ends the wait if it is time, and shows how far it is otherwise.
func (w *waiter) judge() {
	if w.closed {
		return
	}
	w.show.update(w.cbr)
	status := &w.cbr.Status
	switch {
	case w.claim != nil && v1alpha1.HasOtherVolume(w.claim, w.claim.Spec.VolumeName):
		w.finish(fmt.Errorf("claim %s is not populated: it is bound to volume %s, which was there before and was not filled for it; "+
			"delete or reserve the Available volumes of its storage class, then make another claim", w.claim.Name, w.claim.Spec.VolumeName))
	case status.ObservedGeneration != w.cbr.Generation:
	case status.State == v1alpha1.StateFailed:
		w.finish(fmt.Errorf("failed: %s; %s", cmp.Or(status.Message, "without a message"), nextStep(w.cbr)))
	case w.claim != nil && w.claim.Status.Phase == corev1.ClaimLost:
		w.finish(fmt.Errorf("claim %s has lost its volume: make another one", w.claim.Name))
	case w.claim != nil && status.State == v1alpha1.StateReady && w.claim.Status.Phase == corev1.ClaimBound:
		w.finish(nil)
	case w.claim == nil && meta.IsStatusConditionTrue(status.Conditions, v1alpha1.ConditionSnapshotsResolved):
		w.finish(nil)
	}
}

// lastWords is the last thing that the status said.
func (w *waiter) lastWords() string {
	return fmt.Sprintf("%s: %s", stateOf(w.cbr), cmp.Or(w.cbr.Status.Message, "the controller has not looked at it yet: is it running?"))
}

// progressView shows how far a population is: as a bar that is drawn over itself on a terminal, else as a line for each
// change of the state and each tenth of the volume.
type progressView struct {
	w        io.Writer
	terminal bool
	last     string
	drawn    bool
}

func newProgressView(w io.Writer) *progressView {
	f, ok := w.(*os.File)
	return &progressView{w: w, terminal: ok && term.IsTerminal(int(f.Fd()))}
}

// progressWidth is the number of characters of the bar.
const progressWidth = 30

func (v *progressView) update(cbr *v1alpha1.ChangedBlockRange) {
	// Who does not see the progress can still wait for the end, so failures to write it are let pass.
	if v.terminal {
		text := v.line(cbr)
		if text != v.last {
			_, _ = fmt.Fprintf(v.w, "\r\x1b[K%s", text)
			v.last, v.drawn = text, true
		}
		return
	}
	if p := cbr.Status.Progress; p != nil {
		// Tenths only, or a log fills with lines.
		rounded := *p
		rounded.Percent -= rounded.Percent % 10
		rounded.Done = fmt.Sprintf("%d%%", rounded.Percent)
		rounded.EntryCount = 0
		cbr = cbr.DeepCopy()
		cbr.Status.Progress = &rounded
	}
	if text := v.line(cbr); text != v.last {
		_, _ = fmt.Fprintln(v.w, text)
		v.last = text
	}
}

// line is the state with its bar or its message.
func (v *progressView) line(cbr *v1alpha1.ChangedBlockRange) string {
	p := cbr.Status.Progress
	if p == nil {
		text := stateOf(cbr)
		if cbr.Status.Message != "" {
			text += ": " + cbr.Status.Message
		}
		return v.fit(text)
	}
	text := stateOf(cbr)
	if v.terminal {
		full := progressWidth * int(min(max(p.Percent, 0), 100)) / 100
		text = fmt.Sprintf("%s [%s%s]", text, strings.Repeat("#", full), strings.Repeat("-", progressWidth-full))
	}
	if p.EntryCount > 0 {
		text += fmt.Sprintf(" %d extents", p.EntryCount)
	}
	return v.fit(text)
}

// fit cuts a line at the terminal's width, because one that wraps cannot be drawn over.
func (v *progressView) fit(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	f, ok := v.w.(*os.File)
	if !v.terminal || !ok {
		return text
	}
	width, _, err := term.GetSize(int(f.Fd()))
	if runes := []rune(text); err == nil && width > 1 && len(runes) >= width {
		return string(runes[:width-2]) + "…"
	}
	return text
}

// close leaves the cursor on a line of its own.
func (v *progressView) close() {
	if v.drawn {
		_, _ = fmt.Fprintln(v.w)
	}
}
