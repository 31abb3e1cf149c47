package notice

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestNote(t *testing.T) {
	for name, test := range map[string]struct{ text, want string }{
		"short":           {"a pod failed", "a pod failed"},
		"as long as may":  {strings.Repeat("a", MaxBytes), strings.Repeat("a", MaxBytes)},
		"longer":          {strings.Repeat("a", MaxBytes+1), strings.Repeat("a", MaxBytes-3) + "…"},
		"cut in a letter": {strings.Repeat("ä", MaxBytes), strings.Repeat("ä", MaxBytes/2-2) + "…"},
		"not UTF-8":       {"a\xffb", "a\uFFFDb"},
	} {
		t.Run(name, func(t *testing.T) {
			got := Note(test.text)
			if got != test.want || len(got) > MaxBytes || !utf8.ValidString(got) {
				t.Errorf("%d bytes: %q", len(got), got)
			}
		})
	}
}
