// Package isolate gives the cluster's processes a network of their own, in
// which nothing can leave the machine, and mounts of their own, which vanish
// with the last process; and it lets the host's clients in.
package isolate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cbt-populator/cbt-populator/test/cluster/internal/layout"
)

// Namespace runs functions on one operating system thread that lives in the
// cluster's network and mount namespaces. What is started, listened on or
// dialled there belongs to them.
type Namespace struct {
	tasks chan func()
}

// Enter makes the namespaces. masked maps host folders whose names the
// components have compiled in, such as /run/containerd, to folders that take
// their place inside.
func Enter(masked map[string]string) (*Namespace, error) {
	if _, err := os.Lstat(layout.NetnsFile); err == nil {
		return nil, fmt.Errorf("network namespace %s exists already: run `cluster down` first", layout.Netns)
	}
	n := &Namespace{tasks: make(chan func())}
	isolated := make(chan error)
	go func() {
		// Never unlocked: a thread with foreign namespaces must not serve other goroutines.
		runtime.LockOSThread()
		isolated <- os.NewSyscallError("unshare network", unix.Unshare(unix.CLONE_NEWNET))
		for task := range n.tasks {
			task()
		}
	}()
	if err := <-isolated; err != nil {
		return nil, err
	}
	var tid int
	if err := n.Do(func() error { tid = unix.Gettid(); return nil }); err != nil {
		return nil, err
	}
	if err := pinNetwork(tid); err != nil {
		return nil, err
	}
	if err := n.Do(func() error { return privateMounts(masked) }); err != nil {
		return nil, err
	}
	return n, n.loopback()
}

// pinNetwork gives the thread's network namespace its name, as `ip netns`
// would, but without making /run/netns itself a mount that would stay behind.
func pinNetwork(tid int) error {
	if err := os.MkdirAll(filepath.Dir(layout.NetnsFile), 0o755); err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	f, err := os.OpenFile(layout.NetnsFile, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	source := fmt.Sprintf("/proc/self/task/%d/ns/net", tid)
	if err := unix.Mount(source, layout.NetnsFile, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("network namespace: bind %s: %w", layout.NetnsFile, err)
	}
	return nil
}

// privateMounts runs on the namespace's thread. Mounts of the host still
// arrive, none goes out; inside, they propagate as the kubelet needs it.
func privateMounts(masked map[string]string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare mounts: %w", err)
	}
	for _, flags := range []uintptr{unix.MS_SLAVE | unix.MS_REC, unix.MS_SHARED | unix.MS_REC} {
		if err := unix.Mount("", "/", "", flags, ""); err != nil {
			return fmt.Errorf("mount propagation: %w", err)
		}
	}
	for host, own := range masked {
		if err := os.MkdirAll(own, 0o755); err != nil {
			return fmt.Errorf("mask %s: %w", host, err)
		}
		if err := unix.Mount(own, host, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mask %s: %w", host, err)
		}
	}
	return nil
}

// loopback brings lo up with the Node's address. The default route makes
// cluster IPs routable, so that kube-proxy's rules see their packets.
func (n *Namespace) loopback() error {
	for _, args := range [][]string{
		{"link", "set", "lo", "up"},
		{"address", "add", layout.NodeIP + "/32", "dev", "lo"},
		{"route", "add", "default", "dev", "lo"},
	} {
		cmd := exec.Command("ip", args...)
		var out strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := n.Start(cmd); err != nil {
			return fmt.Errorf("ip: %w", err)
		}
		if err := cmd.Wait(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(out.String()))
		}
	}
	return nil
}

// Do runs f on the namespace's thread and returns its error. f must not block.
func (n *Namespace) Do(f func() error) error {
	result := make(chan error, 1)
	n.tasks <- func() { result <- f() }
	return <-result
}

// Start starts a command inside.
func (n *Namespace) Start(cmd *exec.Cmd) error { return n.Do(cmd.Start) }

// Listen listens on a TCP address inside.
func (n *Namespace) Listen(address string) (net.Listener, error) {
	var l net.Listener
	err := n.Do(func() (err error) { l, err = net.Listen("tcp", address); return err })
	return l, err
}

// Dial connects to a TCP address inside. Everything there is on this
// machine, so that a connection is made or refused at once.
func (n *Namespace) Dial(ctx context.Context, _, address string) (net.Conn, error) {
	var conn net.Conn
	dialer := net.Dialer{Timeout: 2 * time.Second}
	err := n.Do(func() (err error) { conn, err = dialer.DialContext(ctx, "tcp", address); return err })
	return conn, err
}

// MakeFolder makes a folder of the host with its parents and returns those
// that were not there before, innermost first.
func MakeFolder(path string) ([]string, error) {
	var missing []string
	for dir := filepath.Clean(path); ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(dir); err == nil {
			break
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("folder %s: %w", path, err)
		}
		missing = append(missing, dir)
	}
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, fmt.Errorf("folder %s: %w", path, err)
	}
	return missing, nil
}
