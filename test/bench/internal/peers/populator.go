package peers

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/internal/populate"
	"github.com/cbt-populator/cbt-populator/internal/snapmeta"
)

// populateIn returns the populator as a peer, so that its allocations can be counted; its time is measured with the real
// program.
func populateIn(format blocklist.Format) func(context.Context, Target, io.Writer, Visit) (int64, error) {
	return func(ctx context.Context, t Target, out io.Writer, _ Visit) (int64, error) {
		dir, err := os.MkdirTemp("", "bench-populate-")
		if err != nil {
			return 0, fmt.Errorf("make a folder: %w", err)
		}
		defer func() { _ = os.RemoveAll(dir) }()
		ca, token := filepath.Join(dir, "ca.crt"), filepath.Join(dir, "token")
		for path, data := range map[string][]byte{ca: t.CA, token: []byte(t.Token)} {
			if err := os.WriteFile(path, data, 0o600); err != nil {
				return 0, fmt.Errorf("write %s: %w", path, err)
			}
		}
		result, err := populate.Run(ctx, &populate.Options{
			Namespace: t.Namespace, Snapshot: t.Snapshot, BaseSnapshotHandle: t.Base,
			Address: t.Address, CAFile: ca, TokenFile: token,
			Format: format, MergeExtents: format == blocklist.Binary, WhenDeltaUnavailable: populate.Fail, Output: populate.Stdout,
			Streams: snapmeta.DefaultStreams, StreamsAfter: snapmeta.DefaultStreamsAfter,
		}, out, slog.New(slog.DiscardHandler))
		if err != nil {
			return 0, fmt.Errorf("populate: %w", err)
		}
		return result.EntryCount, nil
	}
}

// DecodeList reads and verifies a list in either of the populator's formats.
func DecodeList(r io.Reader, visit Visit) error {
	list, err := blocklist.NewReader(r)
	if err != nil {
		return fmt.Errorf("open the list: %w", err)
	}
	return visitList(&list.Cursor, visit)
}

func visitList(c *blocklist.Cursor, visit Visit) error {
	for b := c.NextBatch(); b != nil; b = c.NextBatch() {
		for _, e := range b {
			if err := visit(e.Offset, e.Length); err != nil {
				return err
			}
		}
	}
	if err := c.Err(); err != nil {
		return fmt.Errorf("read the list: %w", err)
	}
	return nil
}
