package outcome

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

// TestExitCodes pins the published codes: scripts and older controllers rely on them.
func TestExitCodes(t *testing.T) {
	want := map[Reason]string{
		Populated: "0 Success", InternalError: "1 Retry", InvalidArguments: "2 Terminal",
		InvalidRequest: "10 Terminal", SnapshotNotFound: "11 Terminal", DeltaUnavailable: "12 Terminal", PermissionDenied: "13 Terminal",
		ListTooLarge: "14 Terminal", VolumeFull: "15 Terminal", ProtocolViolation: "16 Terminal",
		Unauthenticated: "20 Retry", StreamFailed: "21 Retry", OutputFailed: "22 Retry", Cancelled: "23 Retry",
	}
	got := map[Reason]string{}
	for _, r := range Reasons() {
		got[r] = fmt.Sprintf("%d %s", r.ExitCode(), r.Class())
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if r := Reason("Unheard"); r.Class() != Retry || r.ExitCode() != 1 {
		t.Errorf("an unknown reason: %s, %d", r.Class(), r.ExitCode())
	}
}

func TestErrors(t *testing.T) {
	err := Errorf(VolumeFull, "write %s: %w", "list", io.ErrShortWrite)
	if !errors.Is(err, io.ErrShortWrite) || err.Error() != "write list: short write" {
		t.Errorf("%v", err)
	}
	for _, c := range []struct {
		err  error
		want Reason
	}{
		{nil, Populated},
		{io.EOF, InternalError},
		{err, VolumeFull},
		{fmt.Errorf("outer: %w", err), VolumeFull},
		{errors.Join(io.EOF, err), VolumeFull},
	} {
		if got := ReasonOf(c.err); got != c.want {
			t.Errorf("%v: %s, want %s", c.err, got, c.want)
		}
	}
}

func TestRoundTrip(t *testing.T) {
	want := Result{
		Version: Version, Reason: Populated, Mode: "Allocated", Fallback: "the driver answered Unimplemented", VolumeCapacityBytes: 1 << 40, BlockMetadataType: "FIXED_LENGTH",
		BlockSize: 4096, EntryCount: 3, ChangedBytes: 12288, NumBytesWritten: 700, ListDigest: "sha256:00", Resumes: 2,
	}
	data, err := want.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse(string(data))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// TestLongMessage keeps the document whole whatever the message consists of.
func TestLongMessage(t *testing.T) {
	for name, unit := range map[string]string{"plain": "a", "two bytes": "ü", "escaped": "\"", "control": "\x01", "invalid": "\xff", "line": "at \n"} {
		for _, n := range []int{100, 4000, 4090, 5000, 100_000} {
			data, err := Result{Reason: StreamFailed, Message: "start " + strings.Repeat(unit, n/len(unit))}.Marshal()
			if err != nil {
				t.Fatalf("%s, %d bytes: %v", name, n, err)
			}
			if len(data) > MaxMessageBytes {
				t.Errorf("%s, %d bytes: the document has %d", name, n, len(data))
			}
			r, err := Parse(string(data))
			if err != nil || !utf8.ValidString(r.Message) || !strings.HasPrefix(r.Message, "start ") || r.Reason != StreamFailed {
				t.Errorf("%s, %d bytes: %+v, %v", name, n, r, err)
			}
		}
	}
	if _, err := (Result{Reason: Populated, ListDigest: strings.Repeat("x", MaxMessageBytes)}).Marshal(); err == nil {
		t.Error("a document that cannot be shortened is written")
	}
}

// TestLongFallback: a driver's long answer neither breaks the document nor takes the message's place.
func TestLongFallback(t *testing.T) {
	for _, unit := range []string{"a", "ü", "\x01", "a\xff"} {
		long := strings.Repeat(unit, MaxMessageBytes)
		data, err := Result{Reason: StreamFailed, Message: long, Fallback: long, ListDigest: "sha256:" + strings.Repeat("0", 64)}.Marshal()
		if err != nil || len(data) > MaxMessageBytes {
			t.Fatalf("%q: %d bytes, %v", unit, len(data), err)
		}
		r, err := Parse(string(data))
		if err != nil || len(r.Fallback) > MaxFallbackBytes || !strings.HasSuffix(r.Fallback, cutMark) || len(r.Message) < 50 {
			t.Errorf("%q: %+v, %v", unit, r, err)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, message := range []string{
		"", "panic: runtime error", "{", `{}`, `{"version":1}`, `{"reason":"Populated"}`, `{"version":2,"reason":"Populated"}`,
		`{"version":1,"reason":"Populated"} and more`, `[1]`,
	} {
		if r, err := Parse(message); err == nil {
			t.Errorf("%q is read as %+v", message, r)
		}
	}
	if _, err := Parse("{\"version\":1,\"reason\":\"Populated\"}\n"); err != nil {
		t.Errorf("a final newline: %v", err)
	}
}
