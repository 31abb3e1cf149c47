package lives

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/cbt-populator/cbt-populator/test/apiserver"
)

// deadline bounds every wait for one thing: nothing may hang for longer, however busy the machine. It is far
// below the machinery's safety net of ten minutes, so that what is reached within it was reached because a watch woke someone.
const deadline = 4 * time.Minute

var (
	seedFlag  = flag.Uint64("seed", 0, "seed of the random choices; 0: another one each time")
	pairsFlag = flag.Int("pairs", 0, "number of pairs of deletions to try, chosen at random; 0: 20, or 4 with -short; -1: all")
)

func TestMain(m *testing.M) {
	flag.Parse()
	logger := logr.Discard()
	if testing.Verbose() {
		logger = textlogger.NewLogger(textlogger.NewConfig(textlogger.Verbosity(1)))
	}
	log.SetLogger(logger)
	klog.SetLogger(logger)
	os.Exit(apiserver.Main(m))
}

// newRandom returns a source of random choices and prints how to get the same again.
func newRandom(t *testing.T) *rand.Rand {
	t.Helper()
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	fmt.Printf("%s: -seed %d\n", t.Name(), seed)
	return rand.New(rand.NewPCG(seed, 0))
}
