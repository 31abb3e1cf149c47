package snapmeta

import (
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/kubernetes-csi/external-snapshot-metadata/pkg/api"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
)

const (
	fixed    = api.BlockMetadataType_FIXED_LENGTH
	variable = api.BlockMetadataType_VARIABLE_LENGTH
	capacity = 10_000
)

// list makes extents of pairs of offset and length.
func list(pairs ...int64) []blocklist.Extent {
	var extents []blocklist.Extent
	for i := 0; i < len(pairs); i += 2 {
		extents = append(extents, blocklist.Extent{Offset: pairs[i], Length: pairs[i+1]})
	}
	return extents
}

func v(pairs ...int64) message { return message{variable, capacity, list(pairs...)} }

func f(pairs ...int64) message { return message{fixed, capacity, list(pairs...)} }

type calls [][]message

// checkCases are the messages of one call or several.
var checkCases = []struct {
	name  string
	calls calls
	want  []blocklist.Extent
	// rule is part of the violation's text.
	rule string
}{
	{"nothing", calls{{v()}}, nil, ""},
	{"adjacent and apart", calls{{v(0, 10, 10, 5), v(20, 1)}}, list(0, 10, 10, 5, 20, 1), ""},
	{"to the capacity", calls{{v(9_000, 1_000)}}, list(9_000, 1_000), ""},
	{"past the capacity", calls{{v(9_000, 1_001)}}, nil, "past the volume's capacity"},
	{"overflow", calls{{v(math.MaxInt64, 1)}}, nil, "overflows"},
	{"overflow of a continued call", calls{{v(0, 10)}, {v(5, math.MaxInt64)}}, nil, "overflows"},
	{"negative offset", calls{{v(-1, 2)}}, nil, "negative"},
	{"negative offset of a continued call", calls{{v(0, 10)}, {v(-1, 20)}}, nil, "negative"},
	{"zero size", calls{{v(5, 0)}}, nil, "not positive"},
	{"zero size of a continued call", calls{{v(0, 10)}, {v(5, 0)}}, nil, "not positive"},
	{"minimal size", calls{{v(5, math.MinInt64)}}, nil, "not positive"},
	{"overlap", calls{{v(0, 10, 9, 5)}}, nil, "lies before 10"},
	{"overlap across messages", calls{{v(0, 10), v(9, 5)}}, nil, "lies before 10"},
	{"the same again", calls{{v(0, 10, 0, 10)}}, nil, "lies before 10"},

	{"continued", calls{{v(0, 10)}, {v(10, 5, 20, 1)}}, list(0, 10, 10, 5, 20, 1), ""},
	{"continued with an overlap", calls{{v(0, 10)}, {v(5, 10, 20, 1)}}, list(0, 10, 10, 5, 20, 1), ""},
	{"continued with an overlap after an empty message", calls{{v(0, 10)}, {v(), v(5, 10)}}, list(0, 10, 10, 5), ""},
	{"continued with an overlap over several extents", calls{{v(100, 10, 110, 10, 120, 10)}, {v(105, 45)}}, list(100, 10, 110, 10, 120, 10, 130, 20), ""},
	{"continued with an overlap over a gap", calls{{v(0, 10, 20, 10)}, {v(5, 45)}}, nil, "that an earlier call had left out"},
	{"continued with the last extent", calls{{v(0, 10, 20, 10)}, {v(20, 10, 40, 1)}}, list(0, 10, 20, 10, 40, 1), ""},
	{"continued with the last two extents", calls{{v(0, 10, 10, 10)}, {v(0, 10, 10, 10)}}, nil, "ends after the offset"},
	{"continued too early", calls{{v(0, 10, 20, 10)}, {v(0, 10)}}, nil, "ends after the offset"},
	{"only the first extent may overlap", calls{{v(0, 10)}, {v(5, 10, 12, 10)}}, nil, "lies before 15"},
	{"only the first message may overlap", calls{{v(0, 10)}, {v(20, 10), v(5, 10)}}, nil, "lies before 30"},
	{"overlap up to the capacity", calls{{v(0, 9_999)}, {v(0, capacity)}}, list(0, 9_999, 9_999, 1), ""},
	{"overlap past the capacity", calls{{v(0, 10)}, {v(0, capacity+1)}}, nil, "past the volume's capacity"},

	{"fixed", calls{{f(0, 100, 100, 100), f(300, 100)}}, list(0, 100, 100, 100, 300, 100), ""},
	{"fixed with a longer one", calls{{f(0, 100, 100, 101)}}, nil, "changed from 100 to 101"},
	{"fixed with a shorter one", calls{{f(0, 100), f(100, 99)}}, nil, "changed from 100 to 99"},
	{"fixed with a shorter one at the capacity", calls{{f(0, 100, 9_950, 50)}}, list(0, 100, 9_950, 50), ""},
	{"fixed, last block past the capacity", calls{{f(0, 300, 9_900, 300)}}, list(0, 300, 9_900, 100), ""},
	{"fixed, nothing but a last block past the capacity", calls{{f(9_900, 300)}}, list(9_900, 100), ""},
	{"fixed, last block past the capacity, again", calls{{f(0, 300, 9_600, 300)}, {f(9_600, 300, 9_900, 300)}}, list(0, 300, 9_600, 300, 9_900, 100), ""},
	{"fixed, last block past the capacity and off the grid", calls{{f(0, 300, 9_800, 300)}}, nil, "past the volume's capacity"},
	{"fixed, two blocks past the capacity", calls{{f(0, 300, 9_900, 600)}}, nil, "past the volume's capacity"},
	{"fixed, a block behind the capacity", calls{{f(0, 100, 10_000, 100)}}, nil, "past the volume's capacity"},
	{"fixed with the last extent again", calls{{f(0, 100, 100, 100)}, {f(100, 100, 200, 100)}}, list(0, 100, 100, 100, 200, 100), ""},
	{"fixed off the grid", calls{{f(0, 100)}, {f(50, 100)}}, nil, "lies before 100"},

	{"type changes", calls{{v(0, 10), f(20, 10)}}, nil, "is constant"},
	{"type is unknown", calls{{{0, capacity, nil}}}, nil, "not UNKNOWN"},
	{"type is of the future", calls{{{7, capacity, nil}}}, nil, "not 7"},
	{"capacity changes", calls{{v(0, 10), {variable, capacity + 1, list(20, 10)}}}, nil, "capacity is constant"},
	{"capacity is negative", calls{{{variable, -1, nil}}}, nil, "not -1"},
	{"capacity is missing", calls{{{variable, 0, nil}}}, nil, "not 0"},
}

// TestCheck compares what was accepted of each case.
func TestCheck(t *testing.T) {
	for _, c := range checkCases {
		t.Run(c.name, func(t *testing.T) {
			var k checker
			var got []blocklist.Extent
			var err error
			for _, messages := range c.calls {
				k.beginCall()
				for _, m := range messages {
					var extents []blocklist.Extent
					if extents, err = k.accept(m); err != nil {
						break
					}
					got = append(got, extents...)
				}
			}
			if c.rule == "" {
				if diff := cmp.Diff(c.want, got); diff != "" || err != nil {
					t.Fatalf("%v (-want +got)\n%s", err, diff)
				}
				return
			}
			var violation *ViolationError
			if !errors.As(err, &violation) || !strings.Contains(err.Error(), c.rule) {
				t.Fatalf("the error is %v, want a violation of %q", err, c.rule)
			}
			if violation.RPC != len(c.calls) || violation.Message != len(c.calls[len(c.calls)-1]) {
				t.Errorf("the violation is put at call %d, message %d", violation.RPC, violation.Message)
			}
		})
	}
}

// TestChanged has what is constant over a call change between two: nobody's fault, but the list cannot go on.
func TestChanged(t *testing.T) {
	for name, second := range map[string]message{
		"capacity in bytes changed from 10000 to 20000":     {fixed, 2 * capacity, list(100, 100)},
		"type changed from FIXED_LENGTH to VARIABLE_LENGTH": {variable, capacity, list(100, 100)},
		"blocks changed from 100 to 200":                    f(200, 200),
		"blocks changed from 100 to 300":                    f(0, 300),
		"blocks changed from 100 to 50":                     f(100, 50),
	} {
		var k checker
		k.beginCall()
		if _, err := k.accept(f(0, 100)); err != nil {
			t.Fatal(err)
		}
		k.beginCall()
		_, err := k.accept(second)
		var altered *changedError
		if !errors.As(err, &altered) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: the error is %v", name, err)
		}
	}
}
