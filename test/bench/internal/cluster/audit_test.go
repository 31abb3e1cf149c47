package cluster

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestCountWrites counts what the account wrote in the window, and nothing else.
func TestCountWrites(t *testing.T) {
	line := func(user, verb, resource, subresource, stage, at string) string {
		return `{"verb":"` + verb + `","user":{"username":"` + user + `"},"objectRef":{"resource":"` + resource +
			`","subresource":"` + subresource + `"},"stage":"` + stage + `","requestReceivedTimestamp":"2026-01-02T03:04:` + at + `Z"}` + "\n"
	}
	const done = "ResponseComplete"
	log := line("me", "create", "pods", "", done, "10.500000") +
		line("me", "patch", "changedblockranges", "status", done, "11.000000") +
		line("me", "create", "pods", "", done, "12.000000") +
		line("me", "update", "leases", "", done, "12.000000") +
		line("me", "get", "pods", "", done, "12.000000") +
		line("me", "watch", "pods", "", "ResponseStarted", "12.000000") +
		line("other", "create", "pods", "", done, "12.000000") +
		line("me", "delete", "pods", "", done, "09.000000") +
		line("me", "delete", "pods", "", done, "21.000000")
	at := func(second int) time.Time { return time.Date(2026, 1, 2, 3, 4, second, 0, time.UTC) }
	got, err := countWrites(strings.NewReader(log), []window{
		{account: "me", begin: at(10), end: at(20)},
		{account: "nobody", begin: at(0), end: at(59)},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []writes{{"create pods": 2, "patch changedblockranges/status": 1}, {}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if got[0].total() != 3 {
		t.Errorf("%d writes, want 3", got[0].total())
	}
	if text := got[0].perClaim(2); text != "1.00 create pods, 0.50 patch changedblockranges/status" {
		t.Error(text)
	}
	if _, err := countWrites(strings.NewReader("{"), nil); err == nil {
		t.Error("a broken line is no error")
	}
}
