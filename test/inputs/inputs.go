// Package inputs tells Go what the result of a test depends on beside its own code. Go shows an earlier result for as long as the
// files and folders that the test itself has opened have the same place, size and time. What processes of a test read it does not see.
package inputs

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Files names files, and all that is below folders.
func Files(paths ...string) error {
	for _, path := range paths {
		// For each folder that is opened, Go remembers the sizes and times of what is in it.
		if err := filepath.WalkDir(path, func(_ string, _ fs.DirEntry, err error) error { return err }); err != nil {
			return err
		}
	}
	return nil
}

// madeOf prints the go.mod of the main module, and the folders of its packages that a program is linked from.
const madeOf = "{{with .Module}}{{if .Main}}{{.GoMod}}\n{{$.Dir}}\n{{end}}{{end}}"

// Program names what a main package of this module is compiled from, but for what is embedded from folders below a package.
func Program(mainPackage string) error {
	out, err := exec.Command("go", "list", "-deps", "-f", madeOf, mainPackage).Output()
	if err != nil {
		return fmt.Errorf("list what %s is made of: %w", mainPackage, err)
	}
	for path := range strings.FieldsSeq(string(out)) {
		if filepath.Base(path) == "go.mod" {
			_, err = os.Stat(path)
		} else {
			_, err = os.ReadDir(path)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
