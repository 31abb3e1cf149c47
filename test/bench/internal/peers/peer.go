// Package peers holds other ways to consume the stream that the populator consumes: the floor below which no client can
// go, the generated code, upstream's iterator with its emitters, and the bitmap that backup tools build from it. Each
// runs as a child process of the bench, so that its CPU time and memory are its own.
package peers

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/test/bench/internal/extents"
	"github.com/cbt-populator/cbt-populator/test/bench/internal/measure"
	"github.com/cbt-populator/cbt-populator/test/bench/internal/server"
)

// Target says what to ask whom for.
type Target struct {
	// Address is host:port, CA a PEM bundle.
	Address string
	CA      []byte
	// Token is shown to the server.
	Token string
	// Namespace, Snapshot and Base name the delta; Base is a CSI handle.
	Namespace, Snapshot, Base string
}

// ReadTarget returns the target of an endpoint folder, with the names that a server takes that looks at none of them.
func ReadTarget(dir string) (Target, error) {
	address, err := os.ReadFile(filepath.Join(dir, server.AddressFile))
	if err != nil {
		return Target{}, fmt.Errorf("read the server's address: %w", err)
	}
	ca, err := os.ReadFile(filepath.Join(dir, server.CAFile))
	if err != nil {
		return Target{}, fmt.Errorf("read the server's CA: %w", err)
	}
	return Target{Address: string(address), CA: ca, Token: "token", Namespace: "bench", Snapshot: "snap-2", Base: "handle-1"}, nil
}

func (t Target) roots() (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(t.CA) {
		return nil, errors.New("the server's CA holds no PEM certificate")
	}
	return pool, nil
}

// Visit takes an extent or a block, in bytes.
type Visit func(offset, length int64) error

// Peer is one way to consume the stream.
type Peer struct {
	// Name is what the peer is called on the command line and in benchmarks.
	Name string
	// Block is the size of the blocks that it rounds to, in bytes; 0: it keeps extents.
	Block int64
	// Consume reads the delta to its end, writes to out what the peer writes, and returns how much it received: bytes or
	// extents, whichever it knows. It calls visit, if that is not nil, with what the peer has in memory; a peer that keeps
	// nothing there is compared by what it wrote.
	Consume func(ctx context.Context, t Target, out io.Writer, visit Visit) (int64, error)
	// Decode reads what Consume wrote; nil if Consume calls visit.
	Decode func(r io.Reader, visit Visit) error
}

// All returns every peer, the floor first.
func All() []Peer {
	return []Peer{
		{Name: "raw", Consume: receiveRaw},
		{Name: "protobuf", Consume: receiveProtobuf},
		{Name: "iterator-json", Consume: iterateJSON, Decode: decodeIteratorJSON},
		{Name: "iterator-table", Consume: iterateTable, Decode: decodeIteratorTable},
		{Name: "bitmap-4k", Block: 4 << 10, Consume: bitmapOf(4 << 10)},
		{Name: "bitmap-1m", Block: 1 << 20, Consume: bitmapOf(1 << 20)},
		{Name: "populator-json", Consume: populateIn(blocklist.JSON), Decode: DecodeList},
		{Name: "populator-binary", Consume: populateIn(blocklist.Binary), Decode: DecodeList},
	}
}

// Find returns the peer of that name.
func Find(name string) (Peer, error) {
	for _, p := range All() {
		if p.Name == name {
			return p, nil
		}
	}
	return Peer{}, fmt.Errorf("no peer is called %q", name)
}

// Result is what a child process reports on its standard output.
type Result struct {
	// Received is what Consume returned.
	Received int64 `json:"received"`
	// Wall and CPU are from before the connection is made to the end: the start of the process is left out.
	Wall time.Duration `json:"wall"`
	CPU  time.Duration `json:"cpu"`
	// Allocations is the number of objects that were allocated meanwhile.
	Allocations int64 `json:"allocations"`
	// Written is the size of what was written, in bytes.
	Written int64 `json:"written"`
}

// Run lets p consume the delta into the file at path. Unless list is nil, what p got is compared with it, which costs
// time: such a run is no measurement.
func (p Peer) Run(ctx context.Context, t Target, path string, list *extents.List) (r Result, err error) {
	f, err := os.Create(path)
	if err != nil {
		return Result{}, fmt.Errorf("make output of %s: %w", p.Name, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	var visit Visit
	var comparison *extents.Comparison
	if list != nil {
		comparison = list.Compare(p.Block)
		if p.Decode == nil {
			visit = comparison.Add
		}
	}
	out := &counter{to: f}
	if r, err = p.measured(ctx, t, out, visit); err != nil {
		return Result{}, err
	}
	r.Written = out.written
	if comparison == nil {
		return r, nil
	}
	if p.Decode != nil {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return Result{}, fmt.Errorf("read output of %s: %w", p.Name, err)
		}
		if err := p.Decode(f, comparison.Add); err != nil {
			return Result{}, fmt.Errorf("read output of %s: %w", p.Name, err)
		}
	}
	if err := comparison.Done(); err != nil {
		return Result{}, fmt.Errorf("%s: %w", p.Name, err)
	}
	return r, nil
}

// counter counts what is written through it.
type counter struct {
	to      io.Writer
	written int64
}

// Write implements io.Writer.
func (c *counter) Write(p []byte) (int, error) {
	n, err := c.to.Write(p)
	c.written += int64(n)
	return n, err
}

func (p Peer) measured(ctx context.Context, t Target, out io.Writer, visit Visit) (Result, error) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	cpu, err := measure.Self()
	if err != nil {
		return Result{}, err
	}
	begin := time.Now()
	received, err := p.Consume(ctx, t, out, visit)
	if err != nil {
		return Result{}, fmt.Errorf("%s: %w", p.Name, err)
	}
	r := Result{Received: received, Wall: time.Since(begin)}
	used, err := measure.Self()
	if err != nil {
		return Result{}, err
	}
	r.CPU = used - cpu
	runtime.ReadMemStats(&after)
	r.Allocations = int64(after.Mallocs - before.Mallocs)
	return r, nil
}
