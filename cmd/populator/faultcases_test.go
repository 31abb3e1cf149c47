package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
	"github.com/cbt-populator/cbt-populator/test/fakes"
)

// healedFaults end with the exact list.
func healedFaults() []faultCase {
	ok := outcome.Populated
	return []faultCase{
		{name: "none", want: ok, check: wantResumes(0)},
		{name: "cut", want: ok, check: wantResumes(3), cfg: fakes.Config{Script: calls(
			fakes.Fault{Kind: fakes.Cut, After: 3}, fakes.Fault{Kind: fakes.Cut, After: 1}, fakes.Fault{Kind: fakes.Cut, After: 2})}},
		{name: "cut before the first message", want: ok, check: wantResumes(0), cfg: fakes.Config{Script: calls(fakes.Fault{Kind: fakes.Cut})}},
		{name: "cut during the drain", want: ok, cfg: fakes.Config{Script: calls(fakes.Fault{Kind: fakes.Drip, After: 99}, fakes.Fault{Kind: fakes.Cut})}},
		{name: "reset", want: ok, cfg: fakes.Config{Script: calls(fakes.Fault{Kind: fakes.Reset, After: 3}, fakes.Fault{Kind: fakes.Reset, After: 2})}},
		{name: "hang", want: ok, check: wantResumes(1), cfg: fakes.Config{Script: calls(fakes.Fault{Kind: fakes.Hang, After: 4})}},
		{name: "freeze", want: ok, check: wantResumes(1), cfg: fakes.Config{Script: calls(fakes.Fault{Kind: fakes.Freeze, After: 4})}},
		{name: "drip", want: ok, check: wantResumes(0), cfg: fakes.Config{Script: calls(fakes.Fault{Kind: fakes.Drip, Delay: 30 * time.Millisecond})}},
		{name: "slow but alive", want: ok, check: wantResumes(0), cfg: fakes.Config{PerMessage: 600, Script: calls(fakes.Fault{Kind: fakes.Drip, Delay: 600 * time.Millisecond})}},
		{name: "early end", want: ok, check: wantResumes(2), cfg: fakes.Config{Script: calls(fakes.Fault{Kind: fakes.EarlyEnd, After: 5}, fakes.Fault{Kind: fakes.EarlyEnd, After: 2})}},
		{name: "early end before the first message", want: ok, check: wantResumes(1), cfg: fakes.Config{Script: calls(fakes.Fault{Kind: fakes.EarlyEnd})}},
		{name: "two slow ends before the first message", want: ok, flags: []string{"--suspect-after=20ms"}, cfg: fakes.Config{Script: calls(
			fakes.Fault{Kind: fakes.EarlyEnd, Delay: 50 * time.Millisecond}, fakes.Fault{Kind: fakes.EarlyEnd, Delay: 50 * time.Millisecond})}},
		{name: "a slow end after an empty message", want: ok, check: wantResumes(1), flags: []string{"--suspect-after=20ms"}, cfg: fakes.Config{Script: calls(
			fakes.Fault{Kind: fakes.EarlyEnd, After: 5}, fakes.Fault{Kind: fakes.EarlyEnd, Delay: 50 * time.Millisecond, Flush: true})}},
		{name: "empty messages", want: ok, cfg: fakes.Config{Always: fakes.Call{{Kind: fakes.Empty, After: 1}, {Kind: fakes.Empty, After: 3}}}},
		{name: "nothing but empty messages", want: ok, check: wantResumes(1), cfg: fakes.Config{Script: calls(fakes.Fault{Kind: fakes.Chatter, After: 4, Delay: 20 * time.Millisecond})}},
		{name: "begins earlier", want: ok, onlyVariable: true, cfg: fakes.Config{PerMessage: 1, Always: fakes.Call{{Kind: fakes.BeginsEarlier}, {Kind: fakes.Cut, After: 10}}},
			check: func(t *testing.T, s *scene, _ run) {
				if !strings.Contains(fmt.Sprint(s.server.Struck()), string(fakes.BeginsEarlier)) {
					t.Error("no stream began earlier")
				}
			}},
		{name: "stream time limit", want: ok, cfg: fakes.Config{TimeLimit: 60 * time.Millisecond, MessageDelay: 15 * time.Millisecond}},
		{name: "stream time limit that looks complete", want: ok, cfg: fakes.Config{TimeLimit: 60 * time.Millisecond, MessageDelay: 15 * time.Millisecond, LimitLooksComplete: true}},
	}
}

// endFaults are about messages of all sizes, ends, and fallbacks; they too end with the exact list.
func endFaults() []faultCase {
	ok := outcome.Populated
	empty := fakes.Volume{Namespace: testNamespace, Target: testTarget, Base: testBase, Capacity: 1 << 20}
	big := testVolume(false)
	big.Capacity = 1 << 40
	big.Delta = nil
	for i := range int64(320_000) {
		big.Delta = append(big.Delta, fakes.Extent{Offset: 1<<30 + i*2*blockSize, Size: blockSize})
	}
	return []faultCase{
		{name: "large messages", want: ok, flags: []string{"--stall-timeout=50s", "--probe-after=50s"}, onlyVariable: true, cfg: fakes.Config{Volume: big, PerMessage: 1 << 20},
			check: func(t *testing.T, s *scene, _ run) {
				// 320,000 extents of at least 14 bytes in one message are more than the 4 MiB that gRPC receives by default.
				if n := len(s.server.Calls()); n != 2 {
					t.Errorf("%d calls, want the list in one and the drain", n)
				}
			}},
		{name: "empty stream with a message", want: ok, cfg: fakes.Config{Volume: empty, EmptyMessage: true}},
		{name: "capacity reached", want: ok, cfg: fakes.Config{Volume: fullVolume(true)}, onlyFixed: true,
			check: func(t *testing.T, s *scene, _ run) {
				if n := len(s.server.Calls()); n != 1 {
					t.Errorf("%d calls, want no drain at the capacity", n)
				}
			}},
		{name: "hang at the capacity", want: ok, cfg: fakes.Config{Volume: fullVolume(false), Script: calls(fakes.Fault{Kind: fakes.Hang, After: 12})}, onlyVariable: true},
		{name: "empty messages at the capacity", want: ok, cfg: fakes.Config{Volume: fullVolume(false), Script: calls(
			fakes.Fault{Kind: fakes.Chatter, After: 12, Delay: 20 * time.Millisecond})}, onlyVariable: true},
		{name: "cut at the capacity", want: ok, cfg: fakes.Config{Volume: fullVolume(false), Script: calls(fakes.Fault{Kind: fakes.Cut, After: 12})}, onlyVariable: true},
		{name: "max results", want: ok, flags: []string{"--max-results=7"}, check: func(t *testing.T, s *scene, _ run) {
			if got := s.server.Calls()[0].MaxResults; got != 7 {
				t.Errorf("max_results %d, want 7", got)
			}
		}},
		{name: "allocated", want: ok, mode: blocklist.Allocated, flags: []string{"--when-delta-unavailable=UseAllocated"},
			cfg: fakes.Config{Script: calls(fakes.Fault{Kind: fakes.Status, Code: codes.FailedPrecondition})},
			check: func(t *testing.T, s *scene, r run) {
				wantFallbackHeader(t, s)
				if r.result.Mode != string(blocklist.Allocated) || r.result.Fallback != "the driver answered FailedPrecondition: scripted" {
					t.Errorf("mode %q, fallback %q: the fallback has to show, with the driver's words", r.result.Mode, r.result.Fallback)
				}
			}},
		{name: "allocated where a driver wraps that it has no delta", want: ok, mode: blocklist.Allocated, flags: []string{"--when-delta-unavailable=UseAllocated"},
			cfg: fakes.Config{Script: calls(fakes.Fault{Kind: fakes.Status, Code: codes.Internal, Text: wrappedRefusal})}},
		{name: "allocated where delta is not implemented", want: ok, mode: blocklist.Allocated, flags: []string{"--when-delta-unavailable=UseAllocated"},
			cfg: fakes.Config{Script: calls(fakes.Fault{Kind: fakes.Cut}, fakes.Fault{Kind: fakes.Status, Code: codes.Unimplemented})}},
		{name: "the token is echoed before a fallback", want: ok, mode: blocklist.Allocated, flags: []string{"--when-delta-unavailable=UseAllocated"},
			cfg: fakes.Config{Script: calls(fakes.Fault{Kind: fakes.Status, Code: codes.FailedPrecondition, Text: "no delta for " + testToken})},
			check: func(t *testing.T, _ *scene, r run) {
				if !strings.Contains(r.result.Fallback, "no delta for [token]") {
					t.Errorf("fallback %q", r.result.Fallback)
				}
			}},
	}
}

// wantFallbackHeader looks for what tells a reader of the list that it takes the place of a delta: it is not one, although a
// base is named.
func wantFallbackHeader(t *testing.T, s *scene) {
	t.Helper()
	list, err := blocklist.Open(filepath.Join(s.volume, blocklist.FileName(blocklist.JSON)))
	if err != nil {
		t.Fatal(err)
	}
	if h := list.Header(); h.Mode != blocklist.Allocated || h.BaseSnapshotHandle != testBase {
		t.Errorf("the header of the fallback's list is %+v", h)
	}
	if err := list.Close(); err != nil {
		t.Error(err)
	}
}

// terminalCodes are the codes after which another attempt would end the same way.
var terminalCodes = map[codes.Code]outcome.Reason{
	codes.InvalidArgument: outcome.InvalidRequest, codes.NotFound: outcome.SnapshotNotFound,
	codes.PermissionDenied: outcome.PermissionDenied, codes.FailedPrecondition: outcome.DeltaUnavailable,
	codes.Unimplemented: outcome.DeltaUnavailable,
}

// wrappedRefusal is how a driver that asks another service passes its answer on, as INTERNAL.
const wrappedRefusal = "failed to query changed blocks: rpc error: code = FailedPrecondition desc = changed block tracking is not enabled"

// statusFaults are gRPC codes, with the reasons that the populator documents.
func statusFaults() []faultCase {
	var cases []faultCase
	for code := codes.Canceled; code <= codes.Unauthenticated; code++ {
		first, later, always := terminalCodes[code], terminalCodes[code], terminalCodes[code]
		if always == "" {
			first, later, always = outcome.Populated, outcome.Populated, outcome.StreamFailed
		}
		if code == codes.OutOfRange {
			first, always = outcome.InvalidRequest, outcome.InvalidRequest
		}
		if code == codes.Unauthenticated {
			always = outcome.Unauthenticated
		}
		text := ""
		if first != outcome.Populated {
			text = "scripted"
		}
		fault := func(after int) fakes.Fault { return fakes.Fault{Kind: fakes.Status, Code: code, After: after} }
		cases = append(cases,
			faultCase{name: "status once " + code.String(), want: first, text: text, cfg: fakes.Config{Script: calls(fault(0))}},
			faultCase{name: "status in mid-stream " + code.String(), want: later, cfg: fakes.Config{Script: calls(fault(3))}},
			faultCase{name: "status always " + code.String(), want: always, text: "scripted", cfg: fakes.Config{Always: fakes.Call{fault(0)}}})
	}
	return append(cases,
		faultCase{name: "unavailable after some messages for good", want: outcome.StreamFailed, text: "without progress at offset",
			cfg: fakes.Config{Script: calls(fakes.Fault{Kind: fakes.Cut, After: 3}), Always: fakes.Call{{Kind: fakes.Status, Code: codes.Unavailable}}}},
		faultCase{name: "fallback in mid-stream", want: outcome.DeltaUnavailable, flags: []string{"--when-delta-unavailable=UseAllocated"},
			cfg: fakes.Config{Script: calls(fakes.Fault{Kind: fakes.Status, Code: codes.FailedPrecondition, After: 2})}},
		faultCase{name: "no delta, in the words of a driver that wraps it", want: outcome.DeltaUnavailable, text: "is not enabled",
			cfg: fakes.Config{Script: calls(fakes.Fault{Kind: fakes.Status, Code: codes.Internal, Text: wrappedRefusal})}},
		faultCase{name: "past the end, in the words of a driver that wraps it", want: outcome.StreamFailed, text: "without progress at offset",
			cfg: fakes.Config{Script: calls(fakes.Fault{Kind: fakes.Cut, After: 3}), Always: fakes.Call{{Kind: fakes.Status, Code: codes.Internal,
				Text: "failed to query changed blocks: rpc error: code = OutOfRange desc = past the end"}}}},
		faultCase{name: "the token is echoed", want: outcome.InvalidRequest, text: "[token]",
			cfg: fakes.Config{Script: calls(fakes.Fault{Kind: fakes.Status, Code: codes.InvalidArgument, Text: "bad token " + testToken})}},
		faultCase{name: "unknown snapshot", want: outcome.SnapshotNotFound, flags: []string{"--snapshot=another"}},
		faultCase{name: "progress between many failures", want: outcome.Populated, flags: []string{"--max-attempts=2"},
			cfg: fakes.Config{Always: fakes.Call{{Kind: fakes.Cut, After: 1}}}})
}

// trustFaults are about certificates and tokens.
func trustFaults() []faultCase {
	return []faultCase{
		{name: "wrong CA", want: outcome.StreamFailed, text: "certificate", prepare: func(t *testing.T, s *scene) {
			other, err := fakes.NewCertificate("127.0.0.1")
			if err != nil {
				t.Fatal(err)
			}
			s.write(t, filepath.Join(s.endpoint, "ca.crt"), other.CA)
		}},
		{name: "CA bundle with another first", want: outcome.Populated, prepare: func(t *testing.T, s *scene) {
			other, err := fakes.NewCertificate("127.0.0.1")
			if err != nil {
				t.Fatal(err)
			}
			s.write(t, filepath.Join(s.endpoint, "ca.crt"), append(other.CA, s.server.CA()...))
		}},
		{name: "wrong server name", want: outcome.StreamFailed, text: "certificate", cfg: fakes.Config{Names: []string{"another.example"}}},
		{name: "server name override", want: outcome.Populated, cfg: fakes.Config{Names: []string{"another.example"}}, flags: []string{"--server-name=another.example"}},
		{name: "nobody listens", want: outcome.StreamFailed, text: "refused", prepare: func(t *testing.T, s *scene) {
			s.write(t, filepath.Join(s.endpoint, "address"), []byte("127.0.0.1:1"))
		}},
		{name: "not a TLS server", want: outcome.StreamFailed, prepare: func(t *testing.T, s *scene) {
			s.write(t, filepath.Join(s.endpoint, "address"), []byte(plainListener(t)))
		}},
		{name: "rotated certificate", want: outcome.Populated, prepare: func(t *testing.T, s *scene) {
			s.server.Script(fakes.Call{{Kind: fakes.RotateCertificate, After: 3, OnRotate: func() {
				if err := s.server.WriteEndpoint(s.endpoint); err != nil {
					t.Error(err)
				}
			}}})
		}, check: wantResumes(1)},
		{name: "rotated certificate without a new CA", want: outcome.StreamFailed, text: "certificate",
			cfg: fakes.Config{Script: calls(fakes.Fault{Kind: fakes.RotateCertificate, After: 3})}},
		{name: "wrong token", want: outcome.Unauthenticated, prepare: func(_ *testing.T, s *scene) {
			s.server.SetToken("another")
		}, check: func(t *testing.T, s *scene, _ run) {
			if n := len(s.server.Calls()); n != 5 {
				t.Errorf("%d calls, want a bound of 5 on the refusals", n)
			}
		}},
		{name: "expired token", want: outcome.Populated, prepare: func(t *testing.T, s *scene) {
			s.server.Script(fakes.Call{{Kind: fakes.RotateCertificate, After: 3, OnRotate: func() {
				s.server.SetToken("renewed-token-9876543210")
				s.write(t, s.token, []byte("renewed-token-9876543210"))
				if err := s.server.WriteEndpoint(s.endpoint); err != nil {
					t.Error(err)
				}
			}}})
		}},
		{name: "empty token file", want: outcome.StreamFailed, text: "is empty", prepare: func(t *testing.T, s *scene) {
			s.write(t, s.token, []byte("\n"))
		}},
		{name: "empty CA file", want: outcome.StreamFailed, text: "no PEM certificate", prepare: func(t *testing.T, s *scene) {
			s.write(t, filepath.Join(s.endpoint, "ca.crt"), nil)
		}},
	}
}

// brokenPromises are streams that must be refused, in their first call and in one that continues another.
func brokenPromises() []faultCase {
	var cases []faultCase
	add := func(f fakes.Fault, text string, more ...func(*faultCase)) {
		first := faultCase{name: "first call " + string(f.Kind), want: outcome.ProtocolViolation, text: text, cfg: fakes.Config{Script: calls(f)}}
		resumed := faultCase{name: "continued call " + string(f.Kind), want: outcome.ProtocolViolation, text: text,
			cfg: fakes.Config{Script: calls(fakes.Fault{Kind: fakes.Cut, After: 4}, f)}}
		for _, c := range []*faultCase{&first, &resumed} {
			for _, m := range more {
				m(c)
			}
			cases = append(cases, *c)
		}
	}
	onlyFixed := func(c *faultCase) { c.onlyFixed = true }
	add(fakes.Fault{Kind: fakes.Duplicate, After: 1}, "lies before")
	add(fakes.Fault{Kind: fakes.Reorder, After: 2}, "lies before")
	add(fakes.Fault{Kind: fakes.Swap, After: 2}, "lies before")
	add(fakes.Fault{Kind: fakes.Overlap, After: 2}, "lies before")
	add(fakes.Fault{Kind: fakes.Shift, After: 2, By: -8 * blockSize}, "lies before")
	add(fakes.Fault{Kind: fakes.Shift, After: 2, By: 64 << 20}, "capacity")
	add(fakes.Fault{Kind: fakes.ChangeType, After: 2}, "is constant")
	add(fakes.Fault{Kind: fakes.UnknownType, After: 2}, "not UNKNOWN")
	add(fakes.Fault{Kind: fakes.ChangeCapacity, After: 2, By: 4096}, "is constant")
	add(fakes.Fault{Kind: fakes.NoCapacity, After: 2}, "is positive")
	add(fakes.Fault{Kind: fakes.ZeroSize, After: 2}, "not positive")
	add(fakes.Fault{Kind: fakes.NegativeSize, After: 2}, "not positive")
	add(fakes.Fault{Kind: fakes.NegativeOffset, After: 2}, "negative")
	add(fakes.Fault{Kind: fakes.Overflow, After: 2}, "overflows")
	add(fakes.Fault{Kind: fakes.PastCapacity, After: 2}, "past the volume's capacity")
	add(fakes.Fault{Kind: fakes.OddSize, After: 2}, "have one size", onlyFixed)
	return append(cases,
		faultCase{name: "ignored offset", want: outcome.ProtocolViolation, text: "ends after the offset",
			cfg: fakes.Config{Script: calls(fakes.Fault{Kind: fakes.Cut, After: 2}, fakes.Fault{Kind: fakes.IgnoreOffset})}},
		faultCase{name: "ignored offset in the drain", want: outcome.ProtocolViolation, text: "ends after the offset",
			cfg: fakes.Config{Always: fakes.Call{{Kind: fakes.IgnoreOffset}}}},
		faultCase{name: "the type changes between calls", want: outcome.StreamFailed, text: "type changed",
			cfg: fakes.Config{Script: calls(fakes.Fault{Kind: fakes.Cut, After: 2}, fakes.Fault{Kind: fakes.ChangeType})}},
		faultCase{name: "capacity grows between calls", want: outcome.StreamFailed, text: "capacity in bytes changed",
			cfg: fakes.Config{Script: calls(fakes.Fault{Kind: fakes.Cut, After: 2}, fakes.Fault{Kind: fakes.ChangeCapacity, By: 4096})}},
		faultCase{name: "unknown type", want: outcome.ProtocolViolation, text: "message 1 of call 1, offset 0", cfg: fakes.Config{Script: calls(fakes.Fault{Kind: fakes.UnknownType})}},
		faultCase{name: "no capacity", want: outcome.ProtocolViolation, cfg: fakes.Config{Script: calls(fakes.Fault{Kind: fakes.NoCapacity})}})
}
