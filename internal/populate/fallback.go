package populate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"google.golang.org/grpc/status"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
	"github.com/cbt-populator/cbt-populator/internal/snapmeta"
)

// fallback is a stream that, where it may, turns from the delta to the allocated blocks if the driver says, before it sent
// any of the delta, that it has none. It keeps the driver's reason, which a stream that turns by itself would only log.
type fallback struct {
	*snapmeta.Stream
	// cfg is the stream's configuration.
	cfg snapmeta.Config
	may bool
	log *slog.Logger
	// why is the driver's reason in a sentence; empty as long as the delta is listed.
	why string
}

func newFallback(cfg snapmeta.Config, may bool, log *slog.Logger) (*fallback, error) {
	stream, err := snapmeta.New(cfg)
	if err != nil {
		return nil, err
	}
	return &fallback{Stream: stream, cfg: cfg, may: may && cfg.Request.BaseHandle != "", log: log}, nil
}

// Next implements Source.
func (f *fallback) Next(ctx context.Context) ([]blocklist.Extent, error) {
	extents, err := f.Stream.Next(ctx)
	// A driver that has described its volume has begun to tell the delta; what it says after that is a contradiction.
	if err == nil || !f.may || outcome.ReasonOf(err) != outcome.DeltaUnavailable || f.Stream.Info().CapacityBytes > 0 {
		return extents, err
	}
	f.why = driverWords(err)
	f.log.Warn("delta is unavailable, listing the allocated blocks instead", "error", err.Error())
	f.may, f.cfg.Request.BaseHandle = false, ""
	f.Close()
	if f.Stream, err = snapmeta.New(f.cfg); err != nil {
		return nil, outcome.Errorf(outcome.InternalError, "list the allocated blocks instead: %w", err)
	}
	return f.Stream.Next(ctx)
}

// driverWords returns the answer in err, on one line. The stream has removed its token from it.
func driverWords(err error) string {
	var answer interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &answer) {
		return err.Error()
	}
	s := answer.GRPCStatus()
	words := strings.Join(strings.Fields(s.Message()), " ")
	if words == "" {
		return fmt.Sprintf("the driver answered %s", s.Code())
	}
	return fmt.Sprintf("the driver answered %s: %s", s.Code(), words)
}
