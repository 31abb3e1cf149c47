package populate

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/cbt-populator/cbt-populator/internal/outcome"
)

// listening starts a progress server and returns its address, which it logs.
func listening(t *testing.T) (*progressServer, string) {
	t.Helper()
	var buf bytes.Buffer
	s := startProgress(t.Context(), "127.0.0.1:0", slog.New(slog.NewJSONHandler(&buf, nil)))
	var line struct{ Address string }
	if err := json.Unmarshal(buf.Bytes(), &line); err != nil || line.Address == "" {
		t.Fatalf("no address in the log: %q, %v", buf.String(), err)
	}
	return s, line.Address
}

// TestProgressIsBounded: more connections than there are slots, all silent, hold nobody up for long, and end with the server.
func TestProgressIsBounded(t *testing.T) {
	s, address := listening(t)
	s.tell(outcome.Progress{EntryCount: 3, OffsetBytes: 50, VolumeCapacityBytes: 100})
	var silent []net.Conn
	for range progressConnections + 1 {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		silent = append(silent, conn)
	}
	client := http.Client{Timeout: 20 * progressTimeout}
	response, err := client.Get("http://" + address + outcome.ProgressPath)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(response.Body)
	if err := errors.Join(err, response.Body.Close()); err != nil {
		t.Fatal(err)
	}
	if p, err := outcome.ParseProgress(data); err != nil || p.EntryCount != 3 || p.Percent() != 50 {
		t.Errorf("%q: %+v, %v", data, p, err)
	}
	if response, err = client.Post("http://"+address+outcome.ProgressPath, "", nil); err != nil {
		t.Fatal(err)
	}
	if err := response.Body.Close(); err != nil || response.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("a POST: %s, %v", response.Status, err)
	}
	s.stop()
	for _, conn := range silent {
		if err := conn.SetReadDeadline(time.Now().Add(10 * progressTimeout)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("a silent connection is still open")
		}
		_ = conn.Close()
	}
}
