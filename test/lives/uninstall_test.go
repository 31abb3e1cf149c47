package lives

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/cbt-populator/cbt-populator/internal/machinery"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
	"github.com/cbt-populator/cbt-populator/test/apiserver"
)

// TestLetGo runs what `make undeploy` does before it removes the controller, with claims that wait, run, have failed for good and
// are done, while the controller runs and while it does not: no claim keeps a finalizer, no ChangedBlockRange is left.
func TestLetGo(t *testing.T) {
	for _, running := range []bool{true, false} {
		name := map[bool]string{true: "with the controller", false: "without"}[running]
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.startController()
			lives := w.everyPhase()
			if !running {
				w.stop()
			}
			w.letGo()
			lives = w.each(lives, func(l *life) error {
				return l.until("it is let go", func(s sight) string {
					switch {
					case s.claim == nil:
						return "the claim is gone"
					case !released(s.claim):
						return "the claim has the finalizer"
					case s.cbr != nil:
						return "the ChangedBlockRange is there"
					}
					return ""
				})
			})
			if !running {
				w.startController() // which finds what was left
			}
			w.each(lives, func(l *life) error {
				if err := l.until("nothing is left", checkNothingOfOurs); err != nil {
					return err
				}
				return l.end()
			})
			w.checkNothingLeft()
		})
	}
}

// TestLetGoKeepsRanges runs what Helm runs once it has removed the controller: nothing is held any more, and a controller that is
// installed later goes on with every claim.
func TestLetGoKeepsRanges(t *testing.T) {
	w := newWorld(t)
	w.startController()
	lives := w.everyPhase()
	w.stop()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	if err := machinery.LetGo(ctx, w.c, w.cfg.PopulatorNamespace); err != nil {
		t.Fatal(err)
	}
	lives = w.each(lives, func(l *life) error {
		return l.until("it is let go", func(s sight) string {
			switch {
			case s.claim == nil || s.cbr == nil:
				return "the claim or its ChangedBlockRange is gone"
			case len(s.cbr.Finalizers) > 0:
				return "the ChangedBlockRange has a finalizer"
			}
			return checkNothingOfOurs(s)
		})
	})
	w.startController()
	w.each(lives, func(l *life) error {
		l.let(everything)
		if l.fate.at != waiting {
			if err := l.filled(); err != nil {
				return err
			}
		}
		return l.end()
	})
	w.checkNothingLeft()
}

// everyPhase brings a claim as far as each phase, and one more until it has failed.
func (w *world) everyPhase() []*life {
	w.Helper()
	var lives []*life
	for _, p := range append(phases, running) {
		lives = append(lives, w.newLife(deletions{at: p}))
	}
	failing := lives[len(lives)-1]
	return w.each(lives, func(l *life) error {
		if err := l.begin(l.fate.at); err != nil {
			return err
		}
		if err := l.reach(l.fate.at); err != nil || l != failing {
			return err
		}
		l.let(stage{provision: true, bind: true, result: outcome.ListTooLarge})
		return l.until("it has failed", func(s sight) string {
			if s.cbr == nil || s.cbr.Status.State != "Failed" {
				return "it has not"
			}
			return ""
		})
	})
}

func (w *world) letGo() {
	w.Helper()
	assets := os.Getenv(apiserver.AssetsVariable)
	if assets == "" {
		assets = filepath.Join("..", "..", "bin")
	}
	kubectl, err := filepath.Abs(filepath.Join(assets, "kubectl"))
	if err != nil {
		w.Fatal(err)
	}
	script := exec.Command("../../hack/let-go.sh")
	script.Env = append(os.Environ(), "KUBECTL="+kubectl, "KUBECONFIG="+apiserver.Shared(w.T).Kubeconfig, "PATIENCE=5")
	out, err := script.CombinedOutput()
	w.Logf("%s", out)
	if err != nil {
		w.Fatalf("%s: %v\n%s", script, err, out)
	}
}
