package snapmeta

import (
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestBackoff(t *testing.T) {
	timing := Timing{FirstBackoff: 100 * time.Millisecond, LongestBackoff: time.Second}
	for n, nominal := range map[int]time.Duration{
		1: 100 * time.Millisecond, 2: 200 * time.Millisecond, 4: 800 * time.Millisecond, 5: time.Second, 1000: time.Second,
	} {
		for range 100 {
			if wait := backoffFor(n, timing); wait < nominal/2 || wait > nominal*3/2 {
				t.Errorf("failure %d: wait of %s, want %s ± 50 %%", n, wait, nominal)
			}
		}
	}
}

func TestTimingDefaults(t *testing.T) {
	got := Timing{FirstBackoff: time.Hour, MaxAttempts: 3}.withDefaults()
	if got.LongestBackoff != time.Hour || got.MaxAttempts != 3 || got.ProbeAfter != DefaultProbeAfter {
		t.Errorf("%+v", got)
	}
	if d := DefaultProbeAfter + DefaultProbeTimeout + DefaultEndGrace/4; d >= time.Minute {
		t.Errorf("a dead peer is noticed after %s", d)
	}
}

func TestCheckAddress(t *testing.T) {
	for address, ok := range map[string]bool{
		"host:443": true, "service.ns.svc:6443": true, "198.51.100.1:50051": true, "[::1]:443": true, "[2001:db8::1]:443": true,
		"": false, "host": false, "host:": false, ":443": false, "::1:443": false, "https://host:443": false,
	} {
		if err := CheckAddress(address); (err == nil) != ok {
			t.Errorf("%q: %v", address, err)
		}
	}
}

func TestRedact(t *testing.T) {
	r := &reader{token: "a-secret-token"}
	err := r.redact(status.Error(codes.NotFound, "no a-secret-token, a-secret-token"))
	if status.Code(err) != codes.NotFound || status.Convert(err).Message() != "no [token], [token]" {
		t.Errorf("%v", err)
	}
}
