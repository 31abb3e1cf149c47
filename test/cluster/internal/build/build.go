package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/mod/modfile"
	"golang.org/x/sys/unix"

	"github.com/cbt-populator/cbt-populator/test/cluster/internal/layout"
)

// Builder builds components into the checkout's bin folder.
type Builder struct {
	Layout layout.Layout
	// Progress is told what is being built.
	Progress *Progress
	// Force rebuilds what is there already.
	Force bool
}

// Build builds what is not current, one component at a time: the compiler
// uses every core as it is. Two builds of one component wait for each other.
func (b Builder) Build(ctx context.Context, components []Component) error {
	goes, err := b.toolchain(ctx)
	if err != nil {
		return err
	}
	for i, c := range components {
		if err := b.one(ctx, c, goes, fmt.Sprintf("%d/%d", i+1, len(components))); err != nil {
			return err
		}
	}
	b.Progress.finish()
	return nil
}

// lock keeps other builds of a component of this checkout out.
func (b Builder) lock(component string) (unlock func(), err error) {
	path := b.Layout.Bin("." + component + ".lock")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("bin folder: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("build lock: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		b.Progress.say("another build of " + component + " is running in this checkout; waiting for it")
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("build lock %s: %w", path, err), f.Close())
	}
	// Closing the only descriptor releases the lock; there is nothing to lose in it.
	return func() { _ = f.Close() }, nil
}

// toolchain is the Go that builds.
type toolchain struct {
	// id is its version and target platform.
	id string
	// kept holds what was built before, in this checkout or another one.
	kept kept
}

func (b Builder) toolchain(ctx context.Context) (toolchain, error) {
	cmd := exec.CommandContext(ctx, "go", "env", "-json", "GOVERSION", "GOOS", "GOARCH", "GOCACHE")
	cmd.Dir = b.Layout.ComponentDir("kubernetes")
	out, err := cmd.Output()
	if err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return toolchain{}, errors.New("the go command is not in PATH; install Go 1.26 or newer")
		}
		return toolchain{}, fmt.Errorf("go env: %w", err)
	}
	var env struct{ GOVERSION, GOOS, GOARCH, GOCACHE string }
	if err := json.Unmarshal(out, &env); err != nil {
		return toolchain{}, fmt.Errorf("go env: %w", err)
	}
	return toolchain{id: env.GOVERSION + " " + env.GOOS + " " + env.GOARCH, kept: keptIn(env.GOCACHE)}, nil
}

func (b Builder) one(ctx context.Context, c Component, goes toolchain, position string) error {
	unlock, err := b.lock(c.Name)
	if err != nil {
		return err
	}
	defer unlock()
	dir, binary := c.dir(b.Layout), b.Layout.Bin(c.Name)
	version := "from this checkout"
	var mark, flags string
	if c.Module == "" {
		flags = ldflags(c, "")
	} else {
		if version, err = ModuleVersion(dir, c.Module); err != nil {
			return fmt.Errorf("build %s: %w", c.Name, err)
		}
		flags = ldflags(c, version)
		if mark, err = stampOf(dir, goes.id, c.Package, flags); err != nil {
			return fmt.Errorf("build %s: %w", c.Name, err)
		}
		if !b.Force && (current(binary, mark) || goes.kept.take(binary, mark)) {
			b.Progress.reuse(c.Name)
			return nil
		}
	}
	done := b.Progress.start(fmt.Sprintf("building %s %s (%s)", c.Name, version, position))
	started := time.Now()
	if err := b.compile(ctx, c, version, flags, binary); err != nil {
		done("failed")
		return err
	}
	if mark != "" {
		if err := errors.Join(writeStamp(binary, mark), goes.kept.put(binary, mark)); err != nil {
			return fmt.Errorf("build %s: %w", c.Name, err)
		}
	}
	done(fmt.Sprintf("%.0f s", time.Since(started).Seconds()))
	return nil
}

// compile writes the binary beside its place and renames it, because a
// running program cannot be overwritten but can be replaced.
func (b Builder) compile(ctx context.Context, c Component, version, flags, binary string) error {
	dir := c.dir(b.Layout)
	if c.Module == "k8s.io/kubernetes" {
		if err := checkKubernetes(ctx, dir, version); err != nil {
			return fmt.Errorf("build %s: %w", c.Name, err)
		}
	}
	fresh := filepath.Join(filepath.Dir(binary), "."+c.Name+".new")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", flags, "-o", fresh, c.Package)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return b.failure(ctx, c, out, err)
	}
	if err := os.Rename(fresh, binary); err != nil {
		return fmt.Errorf("build %s: %w", c.Name, err)
	}
	return nil
}

// failure keeps the whole output of the compiler in a file and returns its tail.
func (b Builder) failure(ctx context.Context, c Component, out []byte, cause error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("build %s: %w", c.Name, ctx.Err())
	}
	path := b.Layout.BuildLog(c.Name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("build %s: %w; its log cannot be kept: %w", c.Name, cause, err)
	}
	if err := os.WriteFile(path, out, 0o644); err != nil {
		return fmt.Errorf("build %s: %w; its log cannot be kept: %w", c.Name, cause, err)
	}
	lines := strings.Split(strings.TrimRight(string(out), "\n"), "\n")
	if len(lines) > 20 {
		lines = lines[len(lines)-20:]
	}
	return fmt.Errorf("build %s: %w\n%s\nthe whole output is in %s", c.Name, cause, strings.Join(lines, "\n"), path)
}

// checkKubernetes compares the replace lines in dir with what the required
// kubernetes asks for.
func checkKubernetes(ctx context.Context, dir, version string) error {
	component, err := parseGoMod(dir)
	if err != nil {
		return err
	}
	source, err := ModuleDir(ctx, dir, "k8s.io/kubernetes")
	if err != nil {
		return err
	}
	// The module's own go.mod is parsed leniently: it is not ours to judge.
	path := filepath.Join(source, "go.mod")
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("kubernetes %s: %w", version, err)
	}
	kubernetes, err := modfile.ParseLax(path, data, nil)
	if err != nil {
		return fmt.Errorf("kubernetes %s: %w", version, err)
	}
	return checkStaging(component, kubernetes, version)
}

// ModuleDir returns the folder of a module that the go.mod in dir requires,
// and downloads it first when it is not in the module cache.
func ModuleDir(ctx context.Context, dir, module string) (string, error) {
	list := func() (string, error) {
		cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", module)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), "GOWORK=off")
		out, err := cmd.Output()
		return strings.TrimSpace(string(out)), err
	}
	found, err := list()
	if err == nil && found != "" {
		return found, nil
	}
	cmd := exec.CommandContext(ctx, "go", "mod", "download", module)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("download %s: %w: %s", module, err, strings.TrimSpace(string(out)))
	}
	if found, err = list(); err != nil || found == "" {
		return "", fmt.Errorf("module %s has no folder in the module cache: %w", module, err)
	}
	return found, nil
}
