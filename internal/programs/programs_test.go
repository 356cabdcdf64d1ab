package programs_test

import (
	"errors"
	"os"
	"testing"

	"github.com/fetchonce/fetchonce/internal/programs"
)

func TestRedisIsTheChosenProgram(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("FETCHONCE_REDIS_SERVER", self)
	if path, err := programs.Redis(); path != self || err != nil {
		t.Errorf("Redis = %q, %v; want %q, nil", path, err, self)
	}
}

func TestChosenProgramThatIsMissingIsNoReasonToSkip(t *testing.T) {
	t.Setenv("FETCHONCE_REDIS_SERVER", "/nowhere/valkey-server")
	if path, err := programs.Redis(); err == nil || errors.Is(err, programs.ErrNoRedis) {
		t.Errorf("Redis = %q, %v; want an error that is not ErrNoRedis", path, err)
	}
}

func TestRedisThatIsNotOnPath(t *testing.T) {
	t.Setenv("FETCHONCE_REDIS_SERVER", "")
	t.Setenv("PATH", t.TempDir())
	if path, err := programs.Redis(); !errors.Is(err, programs.ErrNoRedis) {
		t.Errorf("Redis = %q, %v; want %v", path, err, programs.ErrNoRedis)
	}
}

func TestOnlyPathHidesDirectories(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("FETCHONCE_ONLY_PATH", "")
	if got := programs.Directories(dir); len(got) != 1 || got[0] != dir {
		t.Errorf("Directories = %q, want %q", got, dir)
	}
	t.Setenv("FETCHONCE_ONLY_PATH", "1")
	if got := programs.Directories(dir); len(got) != 0 {
		t.Errorf("Directories = %q, want none", got)
	}
}
