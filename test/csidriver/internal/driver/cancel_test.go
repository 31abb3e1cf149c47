package driver

import (
	"context"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cbt-populator/cbt-populator/test/csidriver/internal/store"
)

// endingStream is a stream whose context ends when a message is sent.
type endingStream struct {
	grpc.ServerStream
	ctx  context.Context
	send func()
}

func (s endingStream) Context() context.Context { return s.ctx }

func (s endingStream) Send(*csi.GetMetadataAllocatedResponse) error {
	s.send()
	return nil
}

// The client of a stream whose context ended is gone or has given up, but a proxy in between may still be there: it must
// not be told that the list is complete.
func TestEndedContextIsNeverACompleteList(t *testing.T) {
	d, err := New(Config{
		Name: "d.example", NodeID: "n", StateDir: t.TempDir(), MetadataType: csi.BlockMetadataType_FIXED_LENGTH,
		MaxEntriesPerMessage: 1, MaxVolumeBytes: MinVolumeBytes,
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for id, content := range map[string][]byte{"empty": make([]byte, 4096), "one": {1}} {
		err := d.store.Snapshots.Create(store.Snapshot{ID: id, SizeBytes: 4096}, func(path string) error {
			return os.WriteFile(path, append(content, make([]byte, 4096-len(content))...), 0o600)
		})
		if err != nil {
			t.Fatal(err)
		}
		for name, test := range map[string]struct {
			end  func() (context.Context, func())
			want codes.Code
		}{
			"before": {func() (context.Context, func()) {
				ctx, cancel := context.WithCancel(t.Context())
				cancel()
				return ctx, func() { t.Error("sent after the end") }
			}, codes.Canceled},
			"with the last message": {func() (context.Context, func()) { return context.WithCancel(t.Context()) }, codes.Canceled},
			"by its deadline": {func() (context.Context, func()) {
				ctx, cancel := context.WithDeadline(t.Context(), time.Unix(0, 0))
				t.Cleanup(cancel)
				return ctx, func() { t.Error("sent after the end") }
			}, codes.DeadlineExceeded},
		} {
			ctx, send := test.end()
			err := d.GetMetadataAllocated(&csi.GetMetadataAllocatedRequest{SnapshotId: id}, endingStream{ctx: ctx, send: send})
			if status.Code(err) != test.want {
				t.Errorf("snapshot %s, ended %s: %v, want %s", id, name, err, test.want)
			}
		}
	}
}
