package images

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"runtime"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Busybox is where Debian's busybox-static puts its program.
const Busybox = "/bin/busybox"

// entry is one file of a layer.
type entry struct {
	path string
	mode int64
	// Exactly one of these is set; neither means a folder.
	data   []byte
	target string
}

// Push builds the images pause, base, tools and kubectl and pushes them to the
// registry at host. tools also stands for Docker Hub's busybox; kubectl is
// tools with one program more. pause and kubectl are paths of programs.
func Push(ctx context.Context, host, pause, kubectl string) error {
	program, err := os.ReadFile(pause)
	if err != nil {
		return fmt.Errorf("pause image: %w", err)
	}
	client, err := os.ReadFile(kubectl)
	if err != nil {
		return fmt.Errorf("kubectl image: %w", err)
	}
	tools, err := toolsLayer(ctx)
	if err != nil {
		return fmt.Errorf("tools image: %w", err)
	}
	files := rootfs()
	shell := v1.Config{Env: []string{searchPath}, Cmd: []string{"/bin/sh"}, WorkingDir: "/"}
	tools = append(slices.Clone(files), tools...)
	own := []string{runtime.GOARCH}
	for _, image := range []struct {
		name          string
		architectures []string
		entries       []entry
		config        v1.Config
	}{
		{"pause:latest", own, []entry{{path: "pause", mode: 0o755, data: program}}, v1.Config{User: "65535:65535", Entrypoint: []string{"/pause"}}},
		// Without a program it is the same for all; releases are built on it for both.
		{"base:latest", []string{"amd64", "arm64"}, files, v1.Config{User: "65532:65532", Env: []string{searchPath}, WorkingDir: "/"}},
		{"tools:latest", own, tools, shell},
		{"library/busybox:stable", own, tools, shell},
		{"kubectl:latest", own, append(slices.Clone(tools), entry{path: "bin/kubectl", mode: 0o755, data: client}), shell},
	} {
		if err := push(ctx, host+"/"+image.name, image.architectures, image.entries, image.config); err != nil {
			return fmt.Errorf("%s image: %w", image.name, err)
		}
	}
	return nil
}

const searchPath = "PATH=/bin:/usr/bin:/sbin:/usr/sbin:/ko-app"

// rootfs is what programs expect even of an empty image: names for their
// users and a place for temporary files.
func rootfs() []entry {
	return []entry{
		{path: "etc", mode: 0o755},
		{path: "etc/passwd", mode: 0o644, data: []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\nnonroot:x:65532:65532:nonroot:/home/nonroot:/bin/false\n")},
		{path: "etc/group", mode: 0o644, data: []byte("root:x:0:\nnobody:x:65534:\nnonroot:x:65532:\n")},
		{path: "root", mode: 0o700},
		{path: "home", mode: 0o755},
		{path: "home/nonroot", mode: 0o777},
		{path: "tmp", mode: 0o1777},
	}
}

// toolsLayer is busybox with a link for each of its commands.
func toolsLayer(ctx context.Context) ([]entry, error) {
	if err := static(Busybox); err != nil {
		return nil, err
	}
	program, err := os.ReadFile(Busybox)
	if err != nil {
		return nil, err
	}
	list, err := exec.CommandContext(ctx, Busybox, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("%s --list: %w", Busybox, err)
	}
	entries := []entry{{path: "bin", mode: 0o755}, {path: "bin/busybox", mode: 0o755, data: program}}
	for _, command := range strings.Fields(string(list)) {
		if command != "busybox" {
			entries = append(entries, entry{path: path.Join("bin", command), mode: 0o777, target: "busybox"})
		}
	}
	return entries, nil
}

// Static says whether the program at file runs without shared libraries.
func Static(file string) bool { return static(file) == nil }

func static(file string) (err error) {
	program, err := elf.Open(file)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	defer func() { err = errors.Join(err, program.Close()) }()
	for _, p := range program.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("%s needs shared libraries, which an image does not have", file)
		}
	}
	return nil
}

// push pushes an index with one image for each architecture.
func push(ctx context.Context, ref string, architectures []string, entries []entry, config v1.Config) error {
	content, err := layer(entries)
	if err != nil {
		return err
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil })
	if err != nil {
		return fmt.Errorf("layer: %w", err)
	}
	image, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		return fmt.Errorf("append layer: %w", err)
	}
	var index v1.ImageIndex = empty.Index
	for _, architecture := range architectures {
		file, err := image.ConfigFile()
		if err != nil {
			return fmt.Errorf("config: %w", err)
		}
		file = file.DeepCopy()
		file.OS, file.Architecture, file.Config = "linux", architecture, config
		one, err := mutate.ConfigFile(image, file)
		if err != nil {
			return fmt.Errorf("config: %w", err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add: one, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: architecture}},
		})
	}
	tag, err := name.NewTag(ref, name.Insecure)
	if err != nil {
		return fmt.Errorf("name: %w", err)
	}
	if err := remote.WriteIndex(tag, index, remote.WithContext(ctx)); err != nil {
		return fmt.Errorf("push: %w", err)
	}
	return nil
}

// layer writes the entries as a tar archive without times, so that the same
// content always gets the same digest.
func layer(entries []entry) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, e := range entries {
		header := &tar.Header{Name: e.path, Mode: e.mode, Format: tar.FormatPAX}
		switch {
		case e.target != "":
			header.Typeflag, header.Linkname = tar.TypeSymlink, e.target
		case e.data != nil:
			header.Typeflag, header.Size = tar.TypeReg, int64(len(e.data))
		default:
			header.Typeflag, header.Name = tar.TypeDir, e.path+"/"
		}
		if err := w.WriteHeader(header); err != nil {
			return nil, fmt.Errorf("layer: %s: %w", e.path, err)
		}
		if _, err := w.Write(e.data); err != nil {
			return nil, fmt.Errorf("layer: %s: %w", e.path, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("layer: %w", err)
	}
	return out.Bytes(), nil
}
