package procs

import (
	"os"
	"testing"
)

func TestParseStartTime(t *testing.T) {
	const rest = " S 1 2 3 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 0 0"
	for _, name := range []string{"(sh)", "(a b)", "(odd) name)", "(:-))"} {
		got, err := parseStartTime("42 " + name + rest)
		if err != nil || got != 987654 {
			t.Errorf("%s: %d, %v", name, got, err)
		}
	}
	for _, broken := range []string{"", "42 sh S", "42 (sh) S 1 2"} {
		if _, err := parseStartTime(broken); err == nil {
			t.Errorf("%q has a start time", broken)
		}
	}
}

func TestOwnStartTimeIsStable(t *testing.T) {
	first, err := StartTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	second, err := StartTime(os.Getpid())
	if err != nil || first != second || first == 0 {
		t.Errorf("%d, then %d, %v", first, second, err)
	}
}

func TestInCgroup(t *testing.T) {
	for groups, want := range map[string]bool{
		"9:pids:/cbt-cluster/system\n1:name=systemd:/\n":           true,
		"9:pids:/\n4:memory:/cbt-cluster/kubepods/besteffort/p1\n": true,
		"0::/cbt-cluster\n":                        true,
		"9:pids:/cbt-cluster-other/system\n0::/\n": false,
		"9:pids:/user/cbt-cluster/system\n":        false,
		"0::/\n":                                   false,
		"":                                         false,
	} {
		if got := inCgroup(groups, "/cbt-cluster"); got != want {
			t.Errorf("%q: %v", groups, got)
		}
	}
}

func TestZombieIsGone(t *testing.T) {
	if !isZombie("42 (a) Z)  Z 1 2") || isZombie("42 (Z) S 1 2") {
		t.Error("the state is not read after the program's name")
	}
}
