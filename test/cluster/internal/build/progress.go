package build

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// Progress prints one line a component. On a terminal the line of the
// running build counts its seconds.
type Progress struct {
	Out io.Writer
	// Terminal says that Out understands a carriage return.
	Terminal bool

	reused []string
}

func (p *Progress) say(line string) { p.print(line + "\n") }

// print: a terminal that has gone away is no reason to stop building.
func (p *Progress) print(text string) { _, _ = io.WriteString(p.Out, text) }

// reuse notes a component that need not be built; the notes come out as one line.
func (p *Progress) reuse(name string) { p.reused = append(p.reused, name) }

func (p *Progress) finish() {
	if len(p.reused) > 0 {
		p.say("built already: " + strings.Join(p.reused, " "))
		p.reused = nil
	}
}

// start prints the line's beginning and returns the function that ends it.
func (p *Progress) start(line string) func(result string) {
	p.finish()
	p.print(line + " … ")
	if !p.Terminal {
		return func(result string) { p.say(result) }
	}
	started := time.Now()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		ticker := time.NewTicker(time.Second)
		defer ticker.Stop()
		for {
			select {
			case <-stop:
				return
			case <-ticker.C:
				p.print(fmt.Sprintf("\r%s … %.0f s", line, time.Since(started).Seconds()))
			}
		}
	}()
	return func(result string) {
		close(stop)
		<-stopped
		p.say("\r" + line + " … " + result + "   ")
	}
}
