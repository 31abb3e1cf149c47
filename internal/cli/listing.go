package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/kubeaccess"
	"github.com/cbt-populator/cbt-populator/internal/listops"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
	"github.com/cbt-populator/cbt-populator/internal/populate"
	"github.com/cbt-populator/cbt-populator/internal/snapmeta"
)

// Somebody waits for the answer, so a service that cannot be reached is given up sooner than by the populator.
const (
	listingAttempts       = 5
	listingConnectTimeout = 5 * time.Second
)

// listing is a list as the driver's metadata service tells it now, with every check that the populator makes.
type listing struct {
	header blocklist.Header
	// extents are valid until the next batch is asked for, and can be walked over once.
	extents listops.Extents
	stream  *snapmeta.Stream
}

// openListing asks the service for what a claim of spec would be populated with, and waits for the first extents.
func openListing(ctx context.Context, a *kubeaccess.Access, f kubeaccess.ServiceFlags, spec *v1alpha1.ChangedBlockRangeSpec, facts kubeaccess.Facts, warnings io.Writer) (*listing, error) {
	service, err := a.Service(ctx, facts.Driver, a.Namespace, f)
	if err != nil {
		return nil, err
	}
	stream, err := snapmeta.New(snapmeta.Config{
		Request: snapmeta.Request{
			Namespace: a.Namespace, Target: spec.ToVolumeSnapshotName, BaseHandle: facts.FromHandle,
			UseAllocated: spec.WhenDeltaUnavailable == v1alpha1.FallbackUseAllocated,
		},
		Endpoint: service.Endpoint,
		Token:    service.Token,
		Timing:   snapmeta.Timing{MaxAttempts: listingAttempts, ConnectTimeout: listingConnectTimeout},
		Log:      slog.New(slog.NewTextHandler(warnings, &slog.HandlerOptions{Level: slog.LevelWarn, ReplaceAttr: withoutTime})),
	})
	if err != nil {
		return nil, err
	}
	l := &listing{stream: stream}
	if l.header, l.extents, err = populate.Preview(ctx, stream, populateOptions(a.Namespace, spec, facts)); err != nil {
		stream.Close()
		return nil, fmt.Errorf("%w%s", err, whatToDo(err, service, f))
	}
	return l, nil
}

// withoutTime drops the time of log lines: somebody is looking.
func withoutTime(groups []string, a slog.Attr) slog.Attr {
	if a.Key == slog.TimeKey && len(groups) == 0 {
		return slog.Attr{}
	}
	return a
}

func (l *listing) close() { l.stream.Close() }

// populateOptions says of spec what the controller tells a populator.
func populateOptions(namespace string, spec *v1alpha1.ChangedBlockRangeSpec, facts kubeaccess.Facts) *populate.Options {
	o := &populate.Options{
		Namespace: namespace, Driver: facts.Driver,
		Snapshot: spec.ToVolumeSnapshotName, SnapshotHandle: facts.ToHandle,
		BaseSnapshot: spec.FromVolumeSnapshotName, BaseSnapshotHandle: facts.FromHandle,
		MergeExtents:         spec.Merge(),
		BaseRestoreSizeBytes: facts.FromRestoreSize, RestoreSizeBytes: facts.ToRestoreSize,
	}
	if spec.GranularityBytes != nil {
		o.GranularityBytes = *spec.GranularityBytes
	}
	return o
}

// whatToDo returns what to do about a listing that failed before its first extent, to be appended to its text.
func whatToDo(err error, service *kubeaccess.Service, f kubeaccess.ServiceFlags) string {
	var known *outcome.Error
	if !errors.As(err, &known) {
		return ""
	}
	switch known.Reason {
	case outcome.StreamFailed:
		if f.Address == "" {
			return "; " + forwardHint(service.Address)
		}
	case outcome.PermissionDenied, outcome.Unauthenticated:
		return fmt.Sprintf("; the service was shown the token of %s", service.Account)
	default:
	}
	return ""
}

// forwardHint says how to reach a service from outside its cluster.
func forwardHint(address string) string {
	const inside = "the service's address is meant for pods: run the command in one"
	host, port, err := net.SplitHostPort(address)
	labels := strings.Split(host, ".")
	if err != nil || len(labels) < 2 || net.ParseIP(host) != nil {
		return inside + ", or forward a port to the service and give it as --address"
	}
	return fmt.Sprintf("%s, or forward a port (kubectl -n %s port-forward service/%s 6443:%s) and add --address 127.0.0.1:6443", inside, labels[1], labels[0], port)
}
