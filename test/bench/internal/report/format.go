package report

import (
	"strconv"
	"strings"
)

// Number formats v with three digits that count.
func Number(v float64) string {
	switch {
	case v == 0:
		return "0"
	case v < 0.001:
		return "< 0.001"
	case v >= 100:
		return Group(int64(v + 0.5))
	}
	s := strconv.FormatFloat(v, 'f', max(0, 2-exponent(v)), 64)
	if strings.Contains(s, ".") {
		s = strings.TrimRight(strings.TrimRight(s, "0"), ".")
	}
	return s
}

// exponent returns the power of ten of v's first digit.
func exponent(v float64) int {
	_, e, _ := strings.Cut(strconv.FormatFloat(v, 'e', 2, 64), "e")
	n, err := strconv.Atoi(e)
	if err != nil {
		return 0 // infinite or not a number
	}
	return n
}

// Group formats n with commas between thousands.
func Group(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
