"""Two threads that use the same things at once."""

import threading


def answers_of_two_threads(call, inputs):
    """For each of two inputs what ``call(input)`` gives, three times over, while the other thread does the same."""
    answers = [[], []]

    def work(i):
        answers[i] += [call(inputs[i]) for _ in range(3)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers
