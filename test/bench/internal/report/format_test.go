package report

import "testing"

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0", 0.0004: "< 0.001", 0.00222: "0.00222", 0.0471: "0.0471", 0.5: "0.5", 1: "1", 1.375: "1.38", 12.34: "12.3", 10: "10",
		99.96: "100", 123.4: "123", 1110.2: "1,110", 5_000_000: "5,000,000",
	} {
		if got := Number(v); got != want {
			t.Errorf("Number(%v) = %q, want %q", v, got, want)
		}
	}
}

func TestGroup(t *testing.T) {
	for n, want := range map[int64]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567"} {
		if got := Group(n); got != want {
			t.Errorf("Group(%d) = %q, want %q", n, got, want)
		}
	}
}
