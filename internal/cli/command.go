// Package cli is `kubectl cbr`: one constructor and one file for each command. A command parses its flags, opens and
// checks what it was given, and hands the work to a package below: convert, listops, heatmap and copier, which know no
// cluster, or kubeaccess, which does.
package cli

import (
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
)

// Streams are what a command reads from and writes to.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

// pluginName is what examples and messages call the program; under another name it is replaced by that.
const pluginName = "kubectl cbr"

// NewCommand returns the root command with all others below it. version is what --version prints.
func NewCommand(s Streams, version string) *cobra.Command {
	root := &cobra.Command{
		Use:           strings.ReplaceAll(pluginName, " ", "-"),
		Short:         "Make, read, convert, combine and apply lists of changed blocks",
		Long:          longHelp,
		Version:       version,
		Args:          cobra.NoArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		Annotations:   map[string]string{cobra.CommandDisplayNameAnnotation: calledAs(os.Args[0])},
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.SetIn(s.In)
	root.SetOut(s.Out)
	root.SetErr(s.Err)
	root.AddCommand(
		newCatCommand(s),
		newVerifyCommand(s),
		newInfoCommand(s),
		newDiffCommand(s),
		newUnionCommand(s),
		newSliceCommand(s),
		newMapCommand(s),
		newApplyCommand(s),
	)
	root.AddCommand(newClusterCommands(s)...)
	prepare(root)
	return root
}

const longHelp = `A list of changed blocks says which byte ranges of a volume changed between two snapshots, or which hold data. A volume
that was populated from a ChangedBlockRange holds one.

Exit codes: 0 done; 1 refused or failed, and the message says what to do; 2 the command line is wrong; 130 interrupted;
141 the reader of standard output went away.`

// calledAs returns the name under which the program was called: "kubectl cbr" for the plugin.
func calledAs(arg0 string) string {
	name := filepath.Base(arg0)
	if plugin, ok := strings.CutPrefix(name, "kubectl-"); ok {
		return "kubectl " + strings.ReplaceAll(plugin, "_", "-")
	}
	return name
}

// prepare goes through all commands: errors of their work are told from errors of the command line, and examples get
// the name under which the program was called.
func prepare(c *cobra.Command) {
	if run := c.RunE; run != nil {
		c.RunE = func(c *cobra.Command, args []string) error { return markFailure(run(c, args)) }
	}
	c.Example = strings.ReplaceAll(c.Example, pluginName, c.Root().DisplayName())
	for _, sub := range c.Commands() {
		prepare(sub)
	}
}
