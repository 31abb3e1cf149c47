package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/internal/listops"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
	"github.com/cbt-populator/cbt-populator/internal/sink"
	"github.com/cbt-populator/cbt-populator/test/fakes"
)

// TestVolumeWithoutAnAnswer has a volume whose root cannot even be looked at, as on storage that is away: that may pass.
func TestVolumeWithoutAnAnswer(t *testing.T) {
	s := newScene(t, fakes.Config{Volume: testVolume(true)})
	loop := filepath.Join(t.TempDir(), "loop")
	if err := os.Symlink(loop, loop); err != nil {
		t.Fatal(err)
	}
	s.wantReason(t, s.run(t, "--output="+loop), outcome.OutputFailed)
}

// TestBadFlags: every one is refused with a sentence that names the flag.
func TestBadFlags(t *testing.T) {
	s := newScene(t, fakes.Config{Volume: testVolume(true)})
	file := filepath.Join(s.endpoint, "ca.crt")
	for _, c := range []struct {
		flags []string
		text  string
	}{
		{[]string{"--namespace="}, "--namespace is missing"},
		{[]string{"--snapshot="}, "--snapshot is missing"},
		{[]string{"--base-snapshot=snap-1", "--base-snapshot-handle="}, "--base-snapshot-handle is not"},
		{[]string{"--when-delta-unavailable=Maybe"}, "--when-delta-unavailable"},
		{[]string{"--endpoint-dir="}, "the service is missing"},
		{[]string{"--address=a:1"}, "--endpoint-dir excludes"},
		{[]string{"--ca-file=" + file}, "--endpoint-dir excludes"},
		{[]string{"--endpoint-dir=", "--address=a:1"}, "--ca-file is missing"},
		{[]string{"--endpoint-dir=", "--ca-file=" + file}, "--address is missing"},
		{[]string{"--endpoint-dir=", "--ca-file=" + file, "--address=host"}, "--address"},
		{[]string{"--endpoint-dir=", "--ca-file=" + file, "--address=:443"}, "--address"},
		{[]string{"--endpoint-dir=", "--ca-file=" + file, "--address=::1:443"}, "--address"},
		{[]string{"--endpoint-dir=/nowhere"}, "--endpoint-dir"},
		{[]string{"--token-file="}, "--token-file is missing"},
		{[]string{"--token-file=/nowhere"}, "--token-file"},
		{[]string{"--format=XML"}, "--format"},
		{[]string{"--output="}, "--output is missing"},
		{[]string{"--output=/nowhere"}, "--output"},
		{[]string{"--output=" + file + "/below"}, "--output"},
		{[]string{"--output=" + file, "--format=Binary"}, "neither a folder nor a block device"},
		{[]string{"--output=/dev/null", "--format=Binary"}, "neither a folder nor a block device"},
		{[]string{"--max-size-bytes=-1"}, "--max-size-bytes"},
		{[]string{"--granularity-bytes=-4096"}, "--granularity-bytes"},
		{[]string{"--granularity-bytes=256"}, "--granularity-bytes"},
		{[]string{"--granularity-bytes=1000"}, "--granularity-bytes"},
		{[]string{"--restore-size-bytes=-1"}, "--restore-size-bytes"},
		{[]string{"--base-restore-size-bytes=-1"}, "--base-restore-size-bytes"},
		{[]string{"--max-results=-1"}, "--max-results"},
		{[]string{"--max-results=2147483648"}, "--max-results"},
		{[]string{"--max-attempts=-1"}, "--max-attempts"},
		{[]string{"--max-attempts=many"}, "max-attempts"},
		{[]string{"--progress-address=8082"}, "--progress-address"},
		{[]string{"--unheard-of"}, "unheard-of"},
		{[]string{"--format"}, "format"},
		{[]string{"an-argument"}, "an-argument"},
	} {
		t.Run(strings.Join(c.flags, " "), func(t *testing.T) {
			if err := os.Remove(s.termination); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
			r := s.run(t, c.flags...)
			s.wantReason(t, r, outcome.InvalidArguments)
			if !strings.Contains(r.result.Message, c.text) || !strings.Contains(r.stderr, c.text) {
				t.Errorf("message %q, log %q: no %q", r.result.Message, r.stderr, c.text)
			}
		})
	}
	if n := len(s.server.Calls()); n != 0 {
		t.Errorf("%d calls in spite of bad flags", n)
	}
}

// TestFixedAddress uses flags in place of the endpoint folder.
func TestFixedAddress(t *testing.T) {
	v := testVolume(false)
	s := newScene(t, fakes.Config{Volume: v})
	r := s.run(t, "--endpoint-dir=", "--address="+s.server.Address(), "--ca-file="+filepath.Join(s.endpoint, "ca.crt"))
	s.wantList(t, r, expect(v))
}

// TestFormats writes both formats with and without rounding and merging.
func TestFormats(t *testing.T) {
	for _, format := range []blocklist.Format{blocklist.JSON, blocklist.Binary} {
		for _, granularity := range []int64{0, 65536} {
			for _, merge := range []bool{false, true} {
				x := expectation{format: format, mode: blocklist.Delta, granularity: granularity, merge: merge, volume: testVolume(false)}
				s := newScene(t, fakes.Config{Volume: x.volume, PerMessage: 10})
				s.wantList(t, s.run(t, x.flags()...), x)
			}
		}
	}
}

// TestMergeDefault depends on the format.
func TestMergeDefault(t *testing.T) {
	for format, merge := range map[blocklist.Format]bool{blocklist.JSON: false, blocklist.Binary: true} {
		x := expectation{format: format, mode: blocklist.Delta, merge: merge, volume: testVolume(true)}
		s := newScene(t, fakes.Config{Volume: x.volume})
		s.wantList(t, s.run(t, "--format="+string(format)), x)
	}
}

// TestAllocated asks for no base.
func TestAllocated(t *testing.T) {
	v := testVolume(true)
	s := newScene(t, fakes.Config{Volume: v})
	r := s.run(t, "--base-snapshot-handle=")
	if r.code != 0 || r.result.Mode != string(blocklist.Allocated) || r.result.EntryCount != int64(len(v.Allocated)) {
		t.Errorf("exit code %d, result %+v\n%s", r.code, r.result, r.stderr)
	}
	if s.server.Calls()[0].Delta {
		t.Error("a delta was asked for")
	}
}

// TestSizeBound: a list that is too large leaves nothing.
func TestSizeBound(t *testing.T) {
	s := newScene(t, fakes.Config{Volume: testVolume(true)})
	r := s.run(t, "--max-size-bytes=1000")
	s.wantReason(t, r, outcome.ListTooLarge)
}

// TestRestart: what an earlier run left is gone before anything else, also when the new run fails.
func TestRestart(t *testing.T) {
	v := testVolume(true)
	s := newScene(t, fakes.Config{Volume: v, Script: []fakes.Call{{}, {}, {{Kind: fakes.UnknownType}}}})
	s.wantList(t, s.run(t), expect(v))
	s.wantReason(t, s.run(t), outcome.ProtocolViolation)
	s.wantList(t, s.run(t), expect(v))
	s.wantList(t, s.run(t), expect(v))
}

// TestStdout has the same list as a file, and a reader that goes away is a reported failure.
func TestStdout(t *testing.T) {
	v := testVolume(false)
	s := newScene(t, fakes.Config{Volume: v})
	r := s.run(t, "--output=-")
	if r.code != 0 || r.stdout != string(expect(v).bytes(t)) {
		t.Fatalf("exit code %d, %d bytes\n%s", r.code, len(r.stdout), r.stderr)
	}

	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := s.command(ctx, "--output=-")
	cmd.Stdout = writer
	if err := errors.Join(reader.Close(), cmd.Start(), writer.Close()); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != outcome.OutputFailed.ExitCode() {
		t.Errorf("a closed pipe: %v", err)
	}
}

// TestVerify accepts a whole list and refuses the same list cut.
func TestVerify(t *testing.T) {
	v := testVolume(false)
	s := newScene(t, fakes.Config{Volume: v})
	s.wantList(t, s.run(t), expect(v))
	path := filepath.Join(s.volume, blocklist.FileName(blocklist.JSON))

	out, err := exec.Command(binary, "verify", path).Output()
	if err != nil || !bytes.Contains(out, []byte("is whole")) || !bytes.Contains(out, []byte("demo/snap-2")) {
		t.Errorf("%v\n%s", err, out)
	}
	out, err = exec.Command(binary, "verify", "-o", "json", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	var got listops.Summary
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	if got.EntryCount != int64(len(v.Delta)) || got.VolumeCapacityBytes != v.Capacity || got.Mode != "Delta" {
		t.Errorf("%+v", got)
	}

	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s.write(t, path, data[:len(data)-1])
	for _, c := range []struct {
		args []string
		want int
	}{
		{[]string{path}, exitNotWhole},
		{[]string{"/nowhere"}, exitNotWhole},
		{[]string{s.volume}, exitNotWhole},
		{nil, 2},
		{[]string{path, path}, 2},
		{[]string{"-o", "xml", path}, 2},
	} {
		var exit *exec.ExitError
		out, err := exec.Command(binary, append([]string{"verify"}, c.args...)...).Output()
		if !errors.As(err, &exit) || exit.ExitCode() != c.want || len(out) != 0 {
			t.Errorf("verify %v: %v, %q; want exit code %d", c.args, err, out, c.want)
		}
	}
}

// TestVerifyDevice checks a list behind a commit record.
func TestVerifyDevice(t *testing.T) {
	image := filepath.Join(t.TempDir(), "image")
	x := expectation{format: blocklist.Binary, mode: blocklist.Delta, volume: testVolume(true)}
	if err := os.WriteFile(image, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, commit := range []bool{false, true} {
		d, err := sink.NewDeviceImage(image, blocklist.DeviceRecord)
		if err != nil {
			t.Fatal(err)
		}
		list := x.bytes(t)
		if _, err := d.Write(list); err != nil {
			t.Fatal(err)
		}
		if commit {
			if err := d.Commit(t.Context(), sink.List{Bytes: int64(len(list)), SHA256: sha256.Sum256(list)}); err != nil {
				t.Fatal(err)
			}
		}
		if err := exec.Command(binary, "verify", image).Run(); (err == nil) != commit {
			t.Errorf("committed %t: %v", commit, err)
		}
	}
}

func TestHelpAndVersion(t *testing.T) {
	out, err := exec.Command(binary, "--help").Output()
	if err != nil || !bytes.Contains(out, []byte("ProtocolViolation")) || !bytes.Contains(out, []byte("verify")) {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err := exec.Command(binary, "--version").Output(); err != nil || !bytes.Contains(out, []byte("go1")) {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestTerminationMessage: the default path is written only where there is such a file, as in a pod.
func TestTerminationMessage(t *testing.T) {
	dir := t.TempDir()
	there, absent := filepath.Join(dir, "there"), filepath.Join(dir, "absent")
	if err := os.WriteFile(there, bytes.Repeat([]byte("x"), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path  string
		given bool
		want  bool
	}{{"", true, false}, {absent, false, false}, {there, false, true}, {absent, true, true}} {
		if err := writeTermination(c.path, c.given, outcome.Result{Reason: outcome.Cancelled, Message: "stopped"}); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(c.path)
		if !c.want {
			if err == nil {
				t.Errorf("%+v: written", c)
			}
			continue
		}
		if r, err := outcome.Parse(string(data)); err != nil || r.Reason != outcome.Cancelled {
			t.Errorf("%+v: %q, %v", c, data, err)
		}
	}
	if err := writeTermination(filepath.Join(dir, "no", "folder"), true, outcome.Result{}); err == nil {
		t.Error("a message that cannot be written is no error")
	}
}

// TestGuard: a defect has a reason, and a busy output does not hold up the end.
func TestGuard(t *testing.T) {
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	_, err := guard(t.Context(), log, func() (outcome.Result, error) { panic("defect") })
	if outcome.ReasonOf(err) != outcome.InternalError || !strings.Contains(err.Error(), "defect") {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	release := make(chan struct{})
	defer close(release)
	_, err = guard(ctx, log, func() (outcome.Result, error) { <-release; return outcome.Result{}, nil })
	if outcome.ReasonOf(err) != outcome.Cancelled {
		t.Errorf("%v", err)
	}
}
