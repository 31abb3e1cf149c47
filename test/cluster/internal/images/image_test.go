package images

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

func TestLayerIsDeterministicAndComplete(t *testing.T) {
	entries := append(rootfs(), entry{path: "bin/sh", mode: 0o777, target: "busybox"})
	first, err := layer(entries)
	if err != nil {
		t.Fatal(err)
	}
	second, err := layer(entries)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, second) {
		t.Error("the same entries give two layers")
	}
	seen := map[string]*tar.Header{}
	for r := tar.NewReader(bytes.NewReader(first)); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		seen[header.Name] = header
	}
	if tmp := seen["tmp/"]; tmp == nil || tmp.Typeflag != tar.TypeDir || tmp.Mode != 0o1777 {
		t.Errorf("/tmp is %+v", tmp)
	}
	if sh := seen["bin/sh"]; sh == nil || sh.Typeflag != tar.TypeSymlink || sh.Linkname != "busybox" {
		t.Errorf("/bin/sh is %+v", sh)
	}
}

func TestOnlyStaticProgramsAreTaken(t *testing.T) {
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{script, "/nowhere", "/usr/bin/ldd"} {
		if Static(path) {
			t.Errorf("%s is a static program", path)
		}
	}
}

func TestPushedImageCanBePulled(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}()
	Serve(t.TempDir(), l)
	host := l.Addr().String()
	if err := push(context.Background(), host+"/base:latest", []string{"amd64", "arm64"}, rootfs(), v1.Config{User: "65532:65532"}); err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag(host+"/base:latest", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	for _, architecture := range []string{"amd64", "arm64"} {
		image, err := remote.Image(tag, remote.WithPlatform(v1.Platform{OS: "linux", Architecture: architecture}))
		if err != nil {
			t.Fatal(err)
		}
		file, err := image.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		if file.OS != "linux" || file.Architecture != architecture || file.Config.User != "65532:65532" {
			t.Errorf("pulled %s/%s for user %s, want %s", file.OS, file.Architecture, file.Config.User, architecture)
		}
	}
}
