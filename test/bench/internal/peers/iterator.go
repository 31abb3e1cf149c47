package peers

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/RoaringBitmap/roaring/v2"
	servicev1beta1 "github.com/kubernetes-csi/external-snapshot-metadata/client/apis/snapshotmetadataservice/v1beta1"
	servicefake "github.com/kubernetes-csi/external-snapshot-metadata/client/clientset/versioned/fake"
	"github.com/kubernetes-csi/external-snapshot-metadata/pkg/iterator"
	snapshotfake "github.com/kubernetes-csi/external-snapshotter/client/v8/clientset/versioned/fake"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	k8sruntime "k8s.io/apimachinery/pkg/runtime"
	kubefake "k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"

	"github.com/cbt-populator/cbt-populator/test/bench/internal/server"
)

// iterate runs upstream's iterator with an emitter. Its Kubernetes clients answer from memory: what they do, once before the
// stream, is not what is measured.
func iterate(ctx context.Context, t Target, emitter iterator.IteratorEmitter) error {
	kube := kubefake.NewClientset()
	kube.PrependReactor("create", "serviceaccounts", func(k8stesting.Action) (bool, k8sruntime.Object, error) {
		return true, &authenticationv1.TokenRequest{Status: authenticationv1.TokenRequestStatus{Token: t.Token}}, nil
	})
	service := &servicev1beta1.SnapshotMetadataService{
		ObjectMeta: metav1.ObjectMeta{Name: server.DriverName},
		Spec:       servicev1beta1.SnapshotMetadataServiceSpec{Audience: "bench", Address: t.Address, CACert: t.CA},
	}
	err := iterator.GetSnapshotMetadata(ctx, iterator.Args{
		Clients: iterator.Clients{
			KubeClient:     kube,
			SnapshotClient: snapshotfake.NewSimpleClientset(), //nolint:staticcheck // SA1019: there is no other in that module
			SmsCRClient:    servicefake.NewSimpleClientset(service),
		},
		Emitter: emitter, Namespace: t.Namespace, SnapshotName: t.Snapshot, PrevSnapshotID: t.Base,
		CSIDriver: server.DriverName, SANamespace: t.Namespace, SAName: "bench",
	})
	if err != nil {
		return fmt.Errorf("upstream's iterator: %w", err)
	}
	return nil
}

// counting counts the extents that pass to another emitter.
type counting struct {
	iterator.IteratorEmitter
	received int64
}

// SnapshotMetadataIteratorRecord implements iterator.IteratorEmitter.
func (c *counting) SnapshotMetadataIteratorRecord(number int, m iterator.IteratorMetadata) error {
	c.received += int64(len(m.BlockMetadata))
	return c.IteratorEmitter.SnapshotMetadataIteratorRecord(number, m)
}

// iterateJSON is what upstream's snapshot-metadata-lister does with -o json.
func iterateJSON(ctx context.Context, t Target, out io.Writer, _ Visit) (int64, error) {
	// The emitter writes once a message.
	emitter := &counting{IteratorEmitter: &iterator.JSONEmitter{Writer: out}}
	if err := iterate(ctx, t, emitter); err != nil {
		return 0, err
	}
	return emitter.received, nil
}

// iterateTable is what upstream's snapshot-metadata-lister does by default, but with a buffer: it writes line by line.
func iterateTable(ctx context.Context, t Target, out io.Writer, _ Visit) (int64, error) {
	buffered := bufio.NewWriterSize(out, 1<<20)
	emitter := &counting{IteratorEmitter: &iterator.TableEmitter{Writer: buffered}}
	if err := iterate(ctx, t, emitter); err != nil {
		return 0, err
	}
	if err := buffered.Flush(); err != nil {
		return 0, fmt.Errorf("write the table: %w", err)
	}
	return emitter.received, nil
}

func decodeIteratorJSON(r io.Reader, visit Visit) error {
	d := json.NewDecoder(bufio.NewReaderSize(r, 1<<20))
	if _, err := d.Token(); err != nil {
		return fmt.Errorf("read the array's beginning: %w", err)
	}
	for d.More() {
		var record iterator.IteratorMetadata
		if err := d.Decode(&record); err != nil {
			return fmt.Errorf("read a record: %w", err)
		}
		if err := visitAll(record.BlockMetadata, visit); err != nil {
			return err
		}
	}
	if _, err := d.Token(); err != nil {
		return fmt.Errorf("read the array's end: %w", err)
	}
	return nil
}

func decodeIteratorTable(r io.Reader, visit Visit) error {
	lines := bufio.NewScanner(r)
	for n := 0; lines.Scan(); n++ {
		const heading, columns = 2, 5
		if n < heading {
			continue
		}
		fields := strings.Fields(lines.Text())
		if len(fields) != columns {
			return fmt.Errorf("line %q has %d columns", lines.Text(), len(fields))
		}
		offset, err := strconv.ParseInt(fields[3], 10, 64)
		if err != nil {
			return fmt.Errorf("read an offset: %w", err)
		}
		length, err := strconv.ParseInt(fields[4], 10, 64)
		if err != nil {
			return fmt.Errorf("read a length: %w", err)
		}
		if err := visit(offset, length); err != nil {
			return err
		}
	}
	return lines.Err()
}

// marker is an emitter that marks the blocks of every extent in a compressed bitmap, as Velero's block data mover does.
type marker struct {
	bitmap   *roaring.Bitmap
	block    int64
	received int64
}

// SnapshotMetadataIteratorRecord implements iterator.IteratorEmitter.
func (m *marker) SnapshotMetadataIteratorRecord(_ int, metadata iterator.IteratorMetadata) error {
	for _, e := range metadata.BlockMetadata {
		first, last := e.GetByteOffset()/m.block, (e.GetByteOffset()+e.GetSizeBytes()-1)/m.block
		m.bitmap.AddRange(uint64(first), uint64(last)+1)
	}
	m.received += int64(len(metadata.BlockMetadata))
	return nil
}

// SnapshotMetadataIteratorDone implements iterator.IteratorEmitter.
func (m *marker) SnapshotMetadataIteratorDone(int) error { return nil }

func bitmapOf(block int64) func(context.Context, Target, io.Writer, Visit) (int64, error) {
	return func(ctx context.Context, t Target, _ io.Writer, visit Visit) (int64, error) {
		m := &marker{bitmap: roaring.New(), block: block}
		if err := iterate(ctx, t, m); err != nil || visit == nil {
			return m.received, err
		}
		for i := m.bitmap.Iterator(); i.HasNext(); {
			if err := visit(int64(i.Next())*block, block); err != nil {
				return 0, err
			}
		}
		return m.received, nil
	}
}
