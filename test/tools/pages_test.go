//go:build e2e

package tools

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const root = "../.."

// executed says who executes a block of a page. A key is the page, the heading above the block, and for the second block
// under one heading its number.
var executed = map[string]func(t *testing.T, text string){
	"README.md#Use a list with the tools you have":      pageToolsYouHave,
	"docs/backup.md#The format":                         pageBackup,
	"docs/format-binary.md#An example, byte by byte":    pageBinarySum,
	"docs/format-binary.md#A reader in Python":          pagePython,
	"docs/format-binary.md#Block volumes":               pageBlockVolume,
	"docs/format-json.md#Reading it from a shell":       pageReadJSON,
	"docs/format-json.md#Reading it from a shell 2":     pageJSONDigests,
	"docs/kubectl-cbr.md#Install":                       pageInstall,
	"docs/kubectl-cbr.md#cat":                           pageCatRange,
	"docs/kubectl-cbr.md#cat 2":                         pageCopyLoop,
	"docs/kubectl-cbr.md#cat 3":                         pageDdrescue,
	"docs/kubectl-cbr.md#cat 4":                         pageBmaptool,
	"docs/kubectl-cbr.md#verify and info":               pageVerify,
	"docs/kubectl-cbr.md#map":                           pageMap,
	"docs/kubectl-cbr.md#union and diff":                pageUnion,
	"docs/kubectl-cbr.md#slice":                         pageSlice,
	"docs/kubectl-cbr.md#apply":                         pageApply,
	"examples/python-reader/README.md#A list in Python": pagePythonExample,
}

// onCluster are blocks that need a cluster, and the test of test/e2e that executes them there.
var onCluster = map[string]string{
	"README.md#Ask for a list":                     "TestReadme",
	"README.md#Read a list from a shell":           "TestReadme",
	"docs/changedblockrange.md#Writing one":        "TestPageChangedBlockRange",
	"docs/changedblockrange.md#Reading its status": "TestPageChangedBlockRange",
	"docs/backup.md#Volumes with a filesystem":     "TestFilesystemSource",
	"docs/drivers.md#Freed blocks":                 "TestPageDrivers",
	"docs/kubectl-cbr.md#create":                   "TestPageKubectlCbr",
	"docs/kubectl-cbr.md#list and describe":        "TestPageKubectlCbr",
	"docs/kubectl-cbr.md#Permissions":              "TestPageKubectlCbr",
	"docs/populator.md#Without the controller":     "TestPagePopulator",
	"docs/operations.md#Check it":                  "TestPageOperations",
	"docs/operations.md#Uninstall":                 "TestInstallations",
}

// onServer are blocks that need an API server, and the test of test/manifests that executes them there.
var onServer = map[string]string{
	"docs/operations.md#Change the way of installation":   "TestChangeTheWayOfInstallation",
	"docs/operations.md#Change the way of installation 2": "TestChangeTheWayOfInstallation",
}

// notExecuted are blocks that no test executes as they stand, each with the reason.
var notExecuted = map[string]string{
	"docs/operations.md#What the cluster needs, indented": "it needs a network; test/docs compares what it applies with the module that the controller is compiled against",
	"README.md#See it work":                               "they start the cluster and the tests that this one is a part of; .ci/run runs all of them",
	"README.md#Install on your cluster":                   "its registry is the reader's; TestInstallations runs the target with the local one",
	"CONTRIBUTING.md#Daily commands":                      "the targets run all tests, this one included; test/docs checks that they exist",
	"CONTRIBUTING.md#Daily commands 2":                    "it runs a test of test/e2e, as make e2e does with all of them",
	"docs/kubectl-cbr.md#preview": "the local cluster's metadata service runs on the node, so there is no pod whose port could be forwarded; " +
		"TestPlugin runs preview in a pod",
}

// languages are those of blocks that a reader is to run.
var languages = []string{"sh", "console", "python"}

// indented matches a command outside of fenced blocks.
var indented = regexp.MustCompile(`^ {4,}(cd|curl|export|go|helm|jq|kubectl|make|sh) `)

// TestPages executes what README, CONTRIBUTING and docs tell a reader to type, as it stands there, and compares what it prints and
// makes with what the page says. Only places are replaced: a list's folder and the devices, by folders and loop devices of the test.
func TestPages(t *testing.T) {
	found := map[string]string{}
	for _, page := range pages(t) {
		for key, text := range blocks(t, page) {
			found[key] = text
		}
	}
	for key, text := range found {
		if run, ok := executed[key]; ok {
			t.Run(key, func(t *testing.T) { run(t, text) })
			continue
		}
		if onCluster[key] == "" && onServer[key] == "" && notExecuted[key] == "" {
			t.Errorf("no test executes this block, and no reason is given: %s\n%s", key, text)
		}
	}
	for key := range executed {
		wantBlock(t, found, key)
	}
	for key := range notExecuted {
		wantBlock(t, found, key)
	}
	wantTests(t, found, onCluster, "test/e2e")
	wantTests(t, found, onServer, "test/manifests")
}

// wantTests looks for the tests of a folder that are said to execute blocks.
func wantTests(t *testing.T, found, tests map[string]string, folder string) {
	t.Helper()
	sources := testsIn(t, folder)
	for key, test := range tests {
		wantBlock(t, found, key)
		if !strings.Contains(sources, "func "+test+"(") {
			t.Errorf("%s: %s has no %s", key, folder, test)
		}
	}
}

func wantBlock(t *testing.T, found map[string]string, key string) {
	t.Helper()
	if found[key] == "" {
		t.Errorf("there is no such block any more: %s", key)
	}
}

// pages returns the pages whose commands are executed here. Those of the other examples are by test/e2e.
func pages(t *testing.T) []string {
	t.Helper()
	docs, err := filepath.Glob(root + "/docs/*.md")
	if err != nil || len(docs) < 10 {
		t.Fatalf("docs has only the pages %v, error %v", docs, err)
	}
	all := []string{"README.md", "CONTRIBUTING.md", "examples/python-reader/README.md"}
	for _, path := range docs {
		all = append(all, "docs/"+filepath.Base(path))
	}
	return all
}

// blocks returns the blocks of a page that a reader is to run, by their keys.
func blocks(t *testing.T, page string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, page))
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	var key string
	number, inside, wanted := 0, false, false
	heading := ""
	for line := range strings.Lines(string(text)) {
		language, fence := strings.CutPrefix(line, "```")
		switch {
		case fence && !inside:
			inside, wanted = true, slices.Contains(languages, strings.TrimSpace(language))
			if !wanted {
				continue
			}
			number++
			key = page + "#" + heading
			if number > 1 {
				key += fmt.Sprintf(" %d", number)
			}
		case fence:
			inside, wanted = false, false
		case wanted:
			found[key] += line
		case !inside && indented.MatchString(line):
			found[page+"#"+heading+", indented"] += line
		case !inside && strings.HasPrefix(line, "#"):
			heading, number = strings.TrimSpace(strings.TrimLeft(line, "#")), 0
		}
	}
	return found
}

// testsIn returns the source of a folder's tests.
func testsIn(t *testing.T, folder string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, folder, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, path := range files {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(text)
	}
	return all.String()
}

// replaced returns a block with other places: pairs of what the page names and what the test has instead. A place that
// the page no longer names is an error, because the test would then work on something else.
func replaced(t *testing.T, text string, places ...string) string {
	t.Helper()
	for i := 0; i < len(places); i += 2 {
		if !strings.Contains(text, places[i]) {
			t.Fatalf("the block no longer names %s:\n%s", places[i], text)
		}
		text = strings.ReplaceAll(text, places[i], places[i+1])
	}
	return text
}

// programs returns a folder with kubectl-cbr and a kubectl that does no more than find a plugin on the PATH, as the real one
// does; test/e2e has that one find it.
func programs(t *testing.T) string {
	t.Helper()
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Symlink(path, filepath.Join(dir, "kubectl-cbr")); err != nil {
		t.Fatal(err)
	}
	kubectl := "#!/bin/sh\nplugin=$1\nshift\nexec \"kubectl-$plugin\" \"$@\"\n"
	if err := os.WriteFile(filepath.Join(dir, "kubectl"), []byte(kubectl), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// withPrograms returns the environment with the programs on the PATH.
func withPrograms(t *testing.T) []string {
	return append(os.Environ(), "PATH="+programs(t)+string(os.PathListSeparator)+os.Getenv("PATH"))
}

// shell runs a block in a folder and returns its standard output.
func shell(t *testing.T, dir, text string, env ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-eu", "-c", text)
	cmd.Dir = dir
	cmd.Env = append(withPrograms(t), env...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s\n%v\n%s%s", text, err, out, stderr.String())
	}
	return string(out)
}
