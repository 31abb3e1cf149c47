package plugin

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metadatav1 "github.com/kubernetes-csi/external-snapshot-metadata/client/apis/snapshotmetadataservice/v1beta1"
	rbacv1 "k8s.io/api/rbac/v1"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/test/fakes"
)

// readList reads a printed list with the reader of backup tools, which refuses one that is not whole.
func readList(t *testing.T, data string) (blocklist.Header, []blocklist.Extent) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "list")
	if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := blocklist.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // it was only read
	var extents []blocklist.Extent
	for f.Next() {
		extents = append(extents, f.Extent())
	}
	if err := f.Err(); err != nil {
		t.Fatal(err)
	}
	return f.Header(), extents
}

// delta is the list that the service has, in steps of 32 KiB if rounded.
func delta(ns string) []blocklist.Extent {
	var extents []blocklist.Extent
	for _, e := range volume(ns).Delta {
		extents = append(extents, blocklist.Extent{Offset: e.Offset, Length: e.Size})
	}
	return extents
}

func TestPreviewIsTheList(t *testing.T) {
	w := newWorld(t)
	w.newRange("plain")
	w.newRange("binary", func(c *v1alpha1.ChangedBlockRange) { c.Spec.Format = v1alpha1.FormatBinary })
	want := delta(w.ns)
	for _, args := range [][]string{
		{"preview", "plain"}, {"preview", "binary", "-o", "cbl"}, {"preview", "--from", "monday", "--to", "tuesday"},
		{"preview", "--from-handle", "monday-handle", "--to", "tuesday"},
	} {
		header, extents := readList(t, w.cbr(args...).must(t).stdout)
		if diff := cmp.Diff(want, extents); diff != "" {
			t.Errorf("%v (-want +got):\n%s", args, diff)
		}
		if header.Driver != w.driver || header.BaseSnapshotHandle != "monday-handle" || header.TargetSnapshotHandle != "tuesday-handle" || header.VolumeCapacityBytes != capacity {
			t.Errorf("%v: header %+v", args, header)
		}
	}
	_, extents := readList(t, w.cbr("preview", "--from", "monday", "--to", "tuesday", "--granularity", "32Ki").must(t).stdout)
	if want := []blocklist.Extent{{Offset: 0, Length: 300 * 32768}}; !cmp.Equal(want, extents) {
		t.Errorf("rounded: got %v, want %v", extents, want)
	}
	_, extents = readList(t, w.cbr("preview", "--to", "tuesday").must(t).stdout)
	if len(extents) != capacity/4096 {
		t.Errorf("allocated: got %d extents", len(extents))
	}
}

// TestPreviewUsesTheStatus: what the controller found is enough, so that nobody needs to read VolumeSnapshotContents.
func TestPreviewUsesTheStatus(t *testing.T) {
	w := newWorld(t)
	cbr := w.newRange("plain")
	w.resolved(cbr)
	w.allow("reader", "jane",
		rbacv1.PolicyRule{APIGroups: []string{v1alpha1.GroupName}, Resources: []string{v1alpha1.Resource}, Verbs: []string{"get"}},
		rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"serviceaccounts/token"}, Verbs: []string{"create"}, ResourceNames: []string{"default"}},
		rbacv1.PolicyRule{APIGroups: []string{"snapshot.storage.k8s.io"}, Resources: []string{"volumesnapshots"}, Verbs: []string{"get"}})
	w.create(
		&rbacv1.ClusterRole{ObjectMeta: w.clusterMeta("services"), Rules: []rbacv1.PolicyRule{{APIGroups: []string{v1alpha1.GroupName}, Resources: []string{"snapshotmetadataservices"}, Verbs: []string{"get"}}}},
		&rbacv1.ClusterRoleBinding{ObjectMeta: w.clusterMeta("services"), RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: w.clusterMeta("services").Name},
			Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: "jane"}}})
	_, extents := readList(t, w.cbr("preview", "plain", "--as", "jane").must(t).stdout)
	if diff := cmp.Diff(delta(w.ns), extents); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	w.cbr("preview", "--from", "monday", "--to", "tuesday", "--as", "jane").refused(t, 1, "VolumeSnapshotContent", "ask the cluster's administrator")
	w.cbr("preview", "plain", "--as", "jane", "--service-account", "other").refused(t, 1,
		"you may not make tokens for service account "+w.ns+"/other", "--token-file")
	w.cbr("preview", "plain", "--as", "nobody").refused(t, 1, "read ChangedBlockRange", "forbidden")
}

// pageOf is a page as JSON.
type pageOf struct {
	Offset   int64 `json:"offset"`
	Capacity int64 `json:"volume_capacity_bytes"`
	Extents  []struct {
		Offset int64 `json:"byte_offset"`
		Length int64 `json:"size_bytes"`
	} `json:"block_metadata"`
	Count int64  `json:"entry_count"`
	Next  *int64 `json:"next_offset"`
}

// TestPreviewPages: pages put one after the other are the list, whatever their size.
func TestPreviewPages(t *testing.T) {
	w := newWorld(t)
	want := delta(w.ns)
	for _, limit := range []int{100, 128, 256, 299, 300, 301, 1000} {
		var got []blocklist.Extent
		for offset := int64(0); ; {
			out := w.cbr("preview", "--from", "monday", "--to", "tuesday", "--limit", fmt.Sprint(limit), "--offset", fmt.Sprint(offset)).must(t).stdout
			var p pageOf
			if err := json.Unmarshal([]byte(out), &p); err != nil {
				t.Fatalf("%v in %s", err, out)
			}
			if p.Offset != offset || p.Capacity != capacity || p.Count != int64(len(p.Extents)) || len(p.Extents) > limit {
				t.Fatalf("page %+v", p)
			}
			for _, e := range p.Extents {
				got = append(got, blocklist.Extent{Offset: e.Offset, Length: e.Length})
			}
			if p.Next == nil {
				break
			}
			offset = *p.Next
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("limit %d (-want +got):\n%s", limit, diff)
		}
	}
	tsv := w.cbr("preview", "--from", "monday", "--to", "tuesday", "-o", "tsv", "--offset-bytes", "33Ki", "--limit-bytes", "64Ki", "--offset", "0").must(t)
	if want := "32768\t4096\n65536\t4096\n98304\t4096\n"; tsv.stdout != want {
		t.Errorf("by bytes: got %q, want %q", tsv.stdout, want)
	}
	first := w.cbr("preview", "--from", "monday", "--to", "tuesday", "-o", "tsv", "--limit", "1").must(t)
	if first.stdout != "0\t4096\n" || !strings.Contains(first.stderr, "More entries follow: --offset 1") {
		t.Errorf("one entry: %+v", first)
	}
}

// TestAPageIsNoList: readers refuse it.
func TestAPageIsNoList(t *testing.T) {
	w := newWorld(t)
	path := filepath.Join(t.TempDir(), "page")
	page := w.cbr("preview", "--to", "tuesday", "--limit", "1").must(t).stdout
	if err := os.WriteFile(path, []byte(page), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := blocklist.Open(path); err == nil {
		t.Errorf("this was taken for a list:\n%s", page)
	}
}

// TestPreviewSurvivesFaults: the stream is the populator's, so what that heals is healed and what that refuses is refused.
func TestPreviewSurvivesFaults(t *testing.T) {
	w := newWorld(t)
	w.service.Script(fakes.Call{{Kind: fakes.Cut, After: 1}}, fakes.Call{{Kind: fakes.EarlyEnd, After: 0}})
	_, extents := readList(t, w.cbr("preview", "--from", "monday", "--to", "tuesday").must(t).stdout)
	if diff := cmp.Diff(delta(w.ns), extents); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	calls := len(w.service.Calls())
	script := make([]fakes.Call, calls+1)
	script[calls] = fakes.Call{{Kind: fakes.Overlap, After: 1}}
	w.service.Script(script...)
	broken := w.cbr("preview", "--from", "monday", "--to", "tuesday")
	broken.refused(t, 1, "lies before")
	if strings.Contains(broken.stdout, `"complete"`) {
		t.Error("a broken stream has become a whole list")
	}
}

func TestPreviewRefuses(t *testing.T) {
	w := newWorld(t)
	w.newRange("plain")
	w.newRange("early", func(c *v1alpha1.ChangedBlockRange) { c.Spec.ToVolumeSnapshotName = "sunday" })
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		args  []string
		code  int
		words []string
	}{
		"nothing named":  {nil, 2, []string{"name a ChangedBlockRange, or the target snapshot with --to"}},
		"named twice":    {[]string{"plain", "--to", "tuesday"}, 2, []string{"both say what to list"}},
		"two bases":      {[]string{"--to", "tuesday", "--from", "monday", "--from-handle", "x"}, 2, []string{"from-handle"}},
		"negative page":  {[]string{"plain", "--limit", "-1"}, 2, []string{"--limit"}},
		"format":         {[]string{"plain", "-o", "xml"}, 2, []string{"--output", "tsv"}},
		"page as cbl":    {[]string{"plain", "-o", "cbl", "--limit", "1"}, 2, []string{"whole lists"}},
		"unknown":        {[]string{"missing"}, 1, []string{`"missing" not found`}},
		"no snapshot":    {[]string{"early"}, 1, []string{"SnapshotNotFound", `VolumeSnapshot "sunday" does not exist`}},
		"no account":     {[]string{"plain", "--service-account", "nobody"}, 1, []string{"service account " + w.ns + "/nobody does not exist", "--service-account"}},
		"unknown handle": {[]string{"--to", "tuesday", "--from-handle", "lost"}, 1, []string{"no such snapshot"}},
		"wrong port":     {[]string{"plain", "--address", closed.Addr().String()}, 1, []string{"gave up after 5 attempts"}},
		"wrong name":     {[]string{"plain", "--server-name", "elsewhere"}, 1, []string{"x509", "forward a port"}},
	} {
		t.Run(name, func(t *testing.T) {
			w.cbr(append([]string{"preview"}, test.args...)...).refused(t, test.code, test.words...)
		})
	}
}

// TestPreviewShowsWhoseTokenWasRefused: the account may not get the snapshots.
func TestPreviewShowsWhoseTokenWasRefused(t *testing.T) {
	w := newWorld(t)
	binding := &rbacv1.RoleBinding{ObjectMeta: w.meta("default")}
	if err := w.Delete(t.Context(), binding); err != nil {
		t.Fatal(err)
	}
	w.cbr("preview", "--to", "tuesday").refused(t, 1, "PermissionDenied", "the token of service account "+w.ns+"/default")
}

// TestPreviewThroughAForwardedPort: the certificate is checked against the service's own name.
func TestPreviewThroughAForwardedPort(t *testing.T) {
	w := newWorld(t)
	_, port, err := net.SplitHostPort(w.service.Address())
	if err != nil {
		t.Fatal(err)
	}
	var service metadatav1.SnapshotMetadataService
	w.get(w.driver, &service)
	service.Spec.Address = "localhost:1"
	if err := w.Update(t.Context(), &service); err != nil {
		t.Fatal(err)
	}
	w.cbr("preview", "--to", "tuesday", "--limit", "1").refused(t, 1, "localhost:1", "run the command in one")
	w.cbr("preview", "--to", "tuesday", "--limit", "1", "--address", "127.0.0.1:"+port).must(t)
}

// TestPreviewFallsBack: only as asked, and with the driver's words.
func TestPreviewFallsBack(t *testing.T) {
	w := newWorld(t)
	none := fakes.Call{{Kind: fakes.Status, Code: 9, Text: "tracking is off"}}
	w.service.Script(none, none)
	w.cbr("preview", "--from", "monday", "--to", "tuesday").refused(t, 1, "tracking is off", "UseAllocated")
	fallen := w.cbr("preview", "--from", "monday", "--to", "tuesday", "--when-delta-unavailable", "UseAllocated").must(t)
	header, extents := readList(t, fallen.stdout)
	if header.Mode != blocklist.Allocated || len(extents) != capacity/4096 {
		t.Errorf("mode %s, %d extents", header.Mode, len(extents))
	}
	if !strings.Contains(fallen.stderr, "tracking is off; these are all allocated blocks instead") {
		t.Errorf("it was silent about it: %s", fallen.stderr)
	}
}

// TestPreviewWithATokenFile: no right to make tokens is needed.
func TestPreviewWithATokenFile(t *testing.T) {
	w := newWorld(t)
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte(w.token("default", audience)), 0o600); err != nil {
		t.Fatal(err)
	}
	w.cbr("preview", "--to", "tuesday", "--limit", "1", "--token-file", path).must(t)
	if err := os.WriteFile(path, []byte(w.token("default", "another")), 0o600); err != nil {
		t.Fatal(err)
	}
	w.cbr("preview", "--to", "tuesday", "--limit", "1", "--token-file", path).refused(t, 1, "Unauthenticated", "audience", path)
}
