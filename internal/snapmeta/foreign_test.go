package snapmeta_test

import (
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/cbt-populator/cbt-populator/internal/outcome"
	"github.com/cbt-populator/cbt-populator/internal/snapmeta"
	"github.com/cbt-populator/cbt-populator/test/fakes"
)

// failsAfter returns a function that has failed with err ever since it was called a number of times.
func failsAfter[T any](times int64, value func() (T, error), err error) func() (T, error) {
	var asked atomic.Int64
	return func() (T, error) {
		if asked.Add(1) > times {
			var none T
			return none, err
		}
		return value()
	}
}

// TestForeignEOF has an Endpoint and a Token that fail for good with an error that wraps io.EOF, as a request does whose connection
// was closed. At no time and in no stream is that the end of the list.
func TestForeignEOF(t *testing.T) {
	const perMessage = 64
	v := even(64 * mib)
	broken := errors.New("the API server hung up")
	foreign := fmt.Errorf("x: %w: %w", broken, io.EOF)
	for _, callback := range []string{"endpoint", "token"} {
		for _, streams := range []int{1, 4} {
			for name, c := range map[string]struct {
				asked int64
				after int
			}{
				"before the first message":          {0, 0},
				"after the first message":           {1, 1},
				"after some calls":                  {3, 2},
				"when the end is asked for again":   {1, len(v.Delta) / perMessage},
				"in what was split off, or resumed": {2, 1},
			} {
				t.Run(fmt.Sprintf("%s, %d streams, %s", callback, streams, name), func(t *testing.T) {
					t.Parallel()
					cut := fakes.Call{{Kind: fakes.Status, Code: codes.Unavailable, After: c.after}}
					_, cfg := service(t, fakes.Config{Volume: v, PerMessage: perMessage, Always: cut})
					cfg.Streams, cfg.Timing.MaxAttempts = streams, 7
					if callback == "token" {
						cfg.Token = failsAfter(c.asked, cfg.Token, foreign)
					} else {
						cfg.Endpoint = failsAfter[snapmeta.Endpoint](c.asked, cfg.Endpoint, foreign)
					}
					got, err := listed(t, cfg)
					if reason := outcome.ReasonOf(err); reason != outcome.StreamFailed || !errors.Is(err, broken) || errors.Is(err, io.EOF) {
						t.Errorf("%d of %d extents and %s (%v), want %s and no end in the error", len(got), len(v.Delta), reason, err, outcome.StreamFailed)
					}
				})
			}
		}
	}
}
