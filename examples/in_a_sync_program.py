"""A program without async: `BlockingJobManager` has the same methods, without `await`.

Run it: `python examples/in_a_sync_program.py [FOLDER]`. Any number of threads may share the manager, such as those of a
web server; here a few of them serve requests. A server that forks its workers (gunicorn, uWSGI) may make the manager
when it loads the application, and has each worker start it: `manager.start()` in `post_fork`.
"""

import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jobkit import BlockingJobContext, BlockingJobManager, Job, job, state


@job("word_count")
class WordCount(Job[int]):
    """Count the words of some pages."""

    pages: list[str]
    done: int = state(0)
    words: int = state(0)

    def run(self, ctx: BlockingJobContext) -> int:
        for page in self.pages[self.done :]:
            self.words += len(page.split())
            self.done += 1
            ctx.progress(completed=self.done, total=len(self.pages))
            ctx.checkpoint()
        return self.words


def serve(manager: BlockingJobManager, customer: str) -> str:
    handle = manager.dispatch(WordCount(pages=[f"Dear {customer}"] * 10), user=customer)
    return f"{customer}: {handle.result(timeout=30)} words"  # typed: an int


def main(folder: Path) -> None:
    with BlockingJobManager(folder) as manager:
        with ThreadPoolExecutor(max_workers=4) as server:
            for answer in server.map(lambda customer: serve(manager, customer), ["Ada", "Grace Hopper", "Linus"]):
                print(answer)

        handle = manager.dispatch(WordCount(pages=["one two three"] * 20))
        for progress in handle.progress():  # a plain iterator, which ends when the job does
            last = progress
        print(f"{last.completed} of {last.total} pages, {handle.result()} words")
        print(f"{manager.stats().completed} jobs are done")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else scratch))
