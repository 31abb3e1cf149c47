package build

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
)

// stamp identifies what a binary is built from: the module graph, the
// toolchain and platform, and the flags. Every part is length-prefixed, so
// that no two different inputs run together into one.
func stamp(goMod, goSum []byte, toolchain, pkg, flags string) string {
	h := sha256.New()
	for _, part := range [][]byte{goMod, goSum, []byte(toolchain), []byte(pkg), []byte(flags)} {
		h.Write([]byte(strconv.Itoa(len(part)) + "\n"))
		h.Write(part)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// stampOf computes the stamp of a component whose go.mod lies in dir.
func stampOf(dir, toolchain, pkg, flags string) (string, error) {
	goMod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
	if err != nil {
		return "", fmt.Errorf("stamp: %w", err)
	}
	goSum, err := os.ReadFile(filepath.Join(dir, "go.sum"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("stamp: %w", err)
	}
	return stamp(goMod, goSum, toolchain, pkg, flags), nil
}

// stampFile lies beside the binary.
func stampFile(binary string) string {
	return filepath.Join(filepath.Dir(binary), "."+filepath.Base(binary)+".stamp")
}

func writeStamp(binary, stamp string) error {
	return os.WriteFile(stampFile(binary), []byte(stamp+"\n"), 0o644)
}

// current says whether the binary exists and carries the stamp.
func current(binary, stamp string) bool {
	info, err := os.Stat(binary)
	if err != nil || !info.Mode().IsRegular() || info.Size() == 0 {
		return false
	}
	have, err := os.ReadFile(stampFile(binary))
	return err == nil && string(have) == stamp+"\n"
}
