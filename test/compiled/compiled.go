// Package compiled builds what tests run as processes of their own.
package compiled

import (
	"fmt"
	"os"
	"os/exec"

	"github.com/cbt-populator/cbt-populator/test/inputs"
)

// Program compiles a main package into a file. It is compiled as it is shipped, whatever flags the test has: a build with the
// race detector's C compiler, or one that remembers this folder, would compile every dependency once more.
func Program(file, mainPackage string) error {
	if err := inputs.Program(mainPackage); err != nil {
		return err
	}
	cmd := exec.Command("go", "build", "-trimpath", "-o", file, mainPackage)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", mainPackage, err, out)
	}
	return nil
}
