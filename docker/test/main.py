"""The test of the images and of the Compose stack; `docker/test.sh` prepares what it needs."""

import sys
import traceback

import accounts
import docker
import images
import stack


def main():
    images.check_images()
    stack.start()
    stack.check_hardening()
    stack.check_demo()
    stack.check_gateway()
    accounts.check_accounts()
    answered = stack.check_kills() | stack.check_partition()
    stack.check_account(answered)
    stack.check_metrics()
    stack.check_rollback()
    stack.check_stop()


try:
    main()
except Exception:
    traceback.print_exc()
    docker.check("the test ran to its end", False)
failed = docker.results.count(False)
print(f"{len(docker.results) - failed} passed, {failed} failed")
sys.exit(failed > 0)
