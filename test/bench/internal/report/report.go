// Package report turns measurements into a table on the terminal, a page of documentation and its plots. The results of
// each part are kept in a file, so that a part that was not measured this time keeps its last figures, with their date.
package report

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
)

// Section is one part of the measurements.
type Section struct {
	// Key names its files.
	Key   string `json:"key"`
	Title string `json:"title"`
	// Text says what was measured and how.
	Text string `json:"text"`
	// Measured says when, where and what: date, machine, revision.
	Measured string `json:"measured"`
	// Table has a heading and rows; the first column is text, the others are numbers.
	Heading []string   `json:"heading"`
	Rows    [][]string `json:"rows"`
	// Notes follow the table, a sentence each.
	Notes []string `json:"notes,omitempty"`
	Chart Chart    `json:"chart"`
}

// Print writes the section as a table for a terminal.
func (s Section) Print(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "\n%s\n\n", s.Title)
	table := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	width := 0
	for _, row := range s.Rows {
		width = max(width, len(Plain(row[0])))
	}
	for _, row := range append([][]string{s.Heading}, s.Rows...) {
		// The first column is aligned to the left by hand. Flush returns what fails here.
		_, _ = fmt.Fprintf(table, "%-*s\t%s\t\n", width, Plain(row[0]), strings.Join(row[1:], "\t"))
	}
	if err := table.Flush(); err != nil {
		return fmt.Errorf("align table: %w", err)
	}
	for _, n := range s.Notes {
		fmt.Fprintf(&b, "  %s\n", Plain(n))
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("print results: %w", err)
	}
	return nil
}

// markdown returns the section as a part of the page.
func (s Section) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "## %s\n\n%s\n\n", s.Title, s.Text)
	line := func(cells []string) { fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | ")) }
	line(s.Heading)
	fmt.Fprintf(&b, "|---%s|\n", strings.Repeat("|---:", len(s.Heading)-1))
	for _, row := range s.Rows {
		line(row)
	}
	b.WriteString("\n")
	for _, n := range s.Notes {
		fmt.Fprintf(&b, "- %s\n", n)
	}
	if len(s.Notes) > 0 {
		b.WriteString("\n")
	}
	fmt.Fprintf(&b, "![%s](%s)\n\n%s.\n", s.Title, s.plotFile(), s.Measured)
	return b.String()
}

func (s Section) plotFile() string { return "performance-" + s.Key + ".svg" }

// Plain takes Markdown's marks out of a title.
func Plain(s string) string { return strings.NewReplacer("**", "", "`", "").Replace(s) }

// Pages knows where results and documentation lie.
type Pages struct {
	// Results is the folder of the sections' files, Docs that of the page and the plots.
	Results, Docs string
	// Order holds the keys of the sections as they follow each other on the page.
	Order []string
	// Preface is the page's beginning, in Markdown.
	Preface string
}

// Save keeps a section's results.
func (p Pages) Save(s Section) error {
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("encode results of %s: %w", s.Key, err)
	}
	if err := os.MkdirAll(p.Results, 0o755); err != nil {
		return fmt.Errorf("make folder for results: %w", err)
	}
	return write(filepath.Join(p.Results, s.Key+".json"), string(data)+"\n")
}

// Render writes the page and the plots from all results that there are.
func (p Pages) Render() error {
	var parts []string
	for _, key := range p.Order {
		data, err := os.ReadFile(filepath.Join(p.Results, key+".json"))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read results: %w", err)
		}
		var s Section
		if err := json.Unmarshal(data, &s); err != nil {
			return fmt.Errorf("read results of %s: %w", key, err)
		}
		if err := s.Chart.draw(filepath.Join(p.Docs, s.plotFile())); err != nil {
			return err
		}
		parts = append(parts, s.markdown())
	}
	return write(filepath.Join(p.Docs, "performance.md"), p.Preface+"\n"+strings.Join(parts, "\n"))
}

func write(path, data string) error {
	if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
