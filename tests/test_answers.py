"""Where a completion says its answer (rewards/answers.py) and what counts as one, kind by kind.

Each table is a class of faults: completion, truth, verdict. In doubt the verdict is 0.
"""
import time

import pytest

import verify as module
from rewards.answers import after_thinking, boxed
from verify import check_truth, verify


@pytest.fixture(autouse=True)
def bugs_surface(monkeypatch):
    """A TypeError, KeyError, ... of ours fails the test; in training it is printed once and counted."""
    monkeypatch.setattr(module, 'raise_bugs', True)


# a Markdown heading of level four is no answer line
HEADINGS_GSM8K = [
    ('#### Step 1: Add the two heaps\n4 + 5 = 9\n\nThe answer is 9.', '9', 1),
    ('#### Step 1: Add the two heaps\n4 + 5 = 9\n\nThe answer is 9.', '1', 0),
    ('#### Step 1\n4 + 5 = 9\n#### Step 2\nDouble it: 18.\n#### 18', '18', 1),
    ('#### Step 1\n4 + 5 = 9\n#### Step 2\nSo \\boxed{18}.', '18', 1),
    ('#### Step 1\n4 + 5 = 9\n#### Step 2\nSo \\boxed{18}.', '2', 0),
    ('#### Step 1: Add\n4 + 5 = 9\n\nSo she has 9 apples.', '9', 1),
    ('#### Step 1: Add\n4 + 5 = 9\n#### Step 2', '2', 0),  # cut
    ('#### Step 1: Add\n4 + 5 = 9\n#### Step 2: Double', '2', 0),
    ('#### 1. Add the two heaps\n4 + 5 = 9\n\nThe answer is 9.', '9', 1),
    ('#### 1. Add the two heaps\n4 + 5 = 9\n\nThe answer is 9.', '1', 0),
    ('#### 2) Double\n2 * 9 = 18\n\n**Answer: 18**', '18', 1),
    ('#### 1 - Add the heaps\n4 + 5 = 9\n\nThe answer is 9.', '9', 1),
    ('#### 3 Ways to See It\nThe answer is 9.', '9', 1),
    ('#### 3 Ways to See It\nThe answer is 9.', '3', 0),
    ('#### Part 2: cost of 3 apples\n3 * 6 = 18\n\n\\boxed{18}', '18', 1),
    ('#### Cost for 4 days\n4 * 5 = 20\nThe answer is 20.', '20', 1),
    ('#### Cost for 4 days\n4 * 5 = 20\nThe answer is 20.', '4', 0),
    ('#### Solution\n4 + 5 = 9\nThe answer is 9.', '9', 1),
    ('#### Solution\n4 + 5 = 9\nShe has 9 apples.', '9', 1),
    ('#### Final Answer\n18', '18', 1),
    ('#### Final Answer\n**18**', '18', 1),
    ('#### Final Answer:\n\n18 apples', '18', 1),
    ('#### **Final Answer**\nShe has 18 apples.', '18', 1),
    ('### Final Answer\n18\n\nI hope that helps with all 3 parts.', '18', 1),
    ('##### Step 1\n4 + 5 = 9\n\nThe answer is 9.', '9', 1),
    ('##### 18', '18', 1),
    ('### Step 3: Conclude\nSo she wins.', '3', 0),
    ('### 18', '18', 1),
    ('#### 18\n\n#### Explanation\n5 + 13 is 18.', '18', 1),
    ('#### 18\n\n#### Check of step 2\n5 + 13 is 18.', '18', 1),
    ('#### 18 apples\n\nI hope this helps.', '18', 1),
    ('#### Answer: 18\n\nI checked it 2 times.', '18', 1),
    ('#### x = 18\n\nI checked it 2 times.', '18', 1),
    ('#### Total: 18\n\nI checked it 2 times.', '18', 1),
    ('#### $18\nGood.', '18', 1),
    ('#### 18 ####', '18', 1),
    ('There are 17.\n####', '17', 0),
    ('5 + 13 = 18\n#### seventeen', '18', 0),
    ('#### 17\n#### or 18\nHm.', '17', 0),
    ('#### 18\n#### Done', '18', 1), ('#### 18\n#### Hope this helps!', '18', 1), ('#### 18\n####', '18', 1),
    ('#### 17\n#### or eighteen', '17', 0), ('#### 18\n#### seventeen', '18', 0), ('#### Step 1\n9\n#### Step Two', '9', 0),
    ('4 + 5 = 9\n### Step 2', '9', 0), ('4 + 5 = 9\n### Step 2', '2', 0), ('#### Half of 18\nThat is it.', '18', 0), ('#### She has 18 apples.\n\nThat is it.', '18', 1),
    ('#### 1st step: add\n4 + 5 = 9\nThe answer is 9.', '1', 0), ('#### (1) Add\n4 + 5 = 9\n\n**Answer:** 9', '9', 1),
    ('#### Day 1\n5 eggs\n#### Day 2\n13 eggs\nTotal: 18 eggs.', '18', 1), ('#### Q1\n4 + 5 = 9\nThe answer is 9.', '1', 0),
    ('#### between 17 and 18\nThe answer is 18', '18', 0), ('The answer is 18\n#### Note 2', '2', 0),
    ('#### 17\n#### 18', '18', 1), ('#### 17\n#### 18', '17', 0),
]
HEADINGS_MCQ = [
    ('#### A closer look at the options\nOnly C has a backbone.\n\nThe answer is C.', 'C', 1),
    ('#### A closer look at the options\nOnly C has a backbone.\n\nThe answer is C.', 'A', 0),
    ('#### B\n', 'B', 1), ('#### (B)', 'B', 1), ('#### **B**', 'B', 1), ('#### B) birds', 'B', 1),
    ('#### Answer: B', 'B', 1), ('#### B. birds', 'B', 1), ('#### B\n\nBirds lay eggs.', 'B', 1),
    ('#### A. Mammals\nThey lay no eggs.\n#### B. Birds\nThey do.\n\nThe answer is B.', 'B', 1),
    ('#### A. Mammals\nThey lay no eggs.\n#### B. Birds\nThey do.\n\nThe answer is A.', 'B', 0),
    ('#### A. Mammals\nThey lay no eggs.\n#### B. Birds', 'B', 0),  # cut
    ('#### Option A\nNo eggs.\n#### Option B\nEggs.\nThe answer is B.', 'B', 1),
    ('#### Option A\nNo eggs.\n#### Option B\nEggs.\nThe answer is A.', 'B', 0),
    ('#### Option A: mammals\nThey lay no eggs.\n\nThe answer is B.', 'B', 1),
    ('#### Option A: mammals\nThey lay no eggs.\n\nThe answer is B.', 'A', 0),
    ('#### Final Answer\nB', 'B', 1), ('#### Final Answer\n**(B)** birds', 'B', 1),
    ('#### I. Introduction\nEggs.\n\nAnswer: B', 'B', 1), ('#### I. Introduction\nEggs.\n\nAnswer: B', 'I', 0),
    ('#### B\n#### Done', 'B', 1), ('#### B\n#### Not A', 'B', 0),
    ('#### A or B', 'A', 0), ('#### A or B\nThe answer is A.', 'A', 0),
    ('#### A\nNo.\n#### B', 'B', 1), ('#### A\nNo.\n#### B', 'A', 0),
]
HEADINGS_MATH = [
    ('#### Step 1: Add\n$2 + 2 = 4$\n\nThe answer is $4$.', '4', 1),
    ('#### Step 1: Add\n$2 + 2 = 4$\n\nThe answer is $4$.', '1', 0),
    ('#### Solution\n$2 + 2 = 4$\n\nThe answer is $4$.', '4', 1),
    ('#### Solving the equation\n$x = 4$\n\n**Answer:** $4$', '4', 1),
    ('#### Final Answer\n\n$4$', '4', 1), ('#### Final Answer:\n$$4$$', '4', 1),
    ('#### 4\n\nBecause $2 + 2 = 4$.', '4', 1), ('#### \\frac{1}{2}\nDone.', '0.5', 1),
    ('#### \\text{east}\nDone.', '\\text{east}', 1), ('#### Answer: 4', '4', 1),
    ('#### east\nDone.', 'east', 1), ('#### Checking $x = 3$\nNo.\n\nThe answer is $4$.', '4', 1),
    ('#### 1. Add the terms\nThe answer is 4', '4', 1), ('#### Step 2', '2', 0),
]

# a place that holds no answer is passed over; what is there may be marked up
PLACES_GSM8K = [
    ('3 * 8 = 24\n#### \\boxed{24}', '24', 1), ('#### **24**', '24', 1), ('#### `24`', '24', 1),
    ('#### $24$', '24', 1), ('#### "24"', '24', 1), ('#### $\\boxed{24}$', '24', 1), ('#### _24_', '24', 1),
    ('#### **\\boxed{24}**', '24', 1), ('#### <answer>24</answer>', '24', 1), ('#### (24)', '24', 1),
    ('#### \\boxed{24} apples', '24', 1), ('#### \\boxed{\\text{24 apples}}', '24', 1),
    ('#### **Answer:** 24', '24', 1), ('<answer>**24**</answer>', '24', 1),
    ('<answer>The answer is 24</answer>', '24', 1), ('<answer>\\boxed{24}</answer>', '24', 1),
    ('Answer: `24`', '24', 1), ('Answer: \\boxed{24}', '24', 1), ('The answer is <b>24</b>.', '24', 1),
    ('\\boxed{}\nThe answer is 5.', '5', 1), ('\\boxed{ }. The answer is 5.', '5', 1),
    ('\\boxed{...}\nThe answer is 5.', '5', 1), ('\\boxed{\\text{your answer}}\nThe answer is 5.', '5', 1),
    ('\\boxed{\\text{}}\nThe answer is 5.', '5', 1), ('<answer></answer>\nThe answer is 5.', '5', 1),
    ('The answer is 5. I put it in \\boxed{}.', '5', 1), ('\\boxed{5}. I put it in \\boxed{}.', '5', 1),
    ('<answer>5</answer> It goes into <answer></answer>.', '5', 1),
    ('We need \\boxed{3x > 5} to hold.\n\n**Answer: 9**', '9', 1),
    ('We need \\boxed{\\langle x\\rangle \\gg k} to hold.\n\n**Answer: 9**', '9', 1),
    ('So \\boxed{2x = 18}.\n\nThe answer is 9.', '9', 1), ('So \\boxed{2x = 18}.\n\nThe answer is 9.', '18', 0),
    ('####\nThe answer is 5.', '5', 1), ('The answer is 18. This answer is correct.', '18', 1),
    ('The answer to the question is 18.', '18', 1), ('The answer is: 18', '18', 1),
    # an answer that is there is decisive
    ('\\boxed{17}\nThe answer is 18.', '18', 0), ('\\boxed{17 or 18}\nThe answer is 18.', '18', 0),
    ('\\boxed{17} or \\boxed{18}\nThe answer is 18.', '18', 0), ('#### 17 or 18\nThe answer is 18.', '18', 0),
    ('#### \\boxed{17} or \\boxed{18}', '18', 0), ('#### \\boxed{17} \\boxed{18}', '18', 0),
    ('#### 17, 18\n\\boxed{18}', '18', 0), ('#### not \\boxed{18}', '18', 0), ('#### 1\\boxed{8}', '18', 0),
    ('#### 2**4', '24', 0), ('#### 2**4', '16', 0), ('#### 18k\nThe answer is 18.', '18', 0),
    ('\\boxed{17} or 18\nThe answer is 18.', '18', 0), ('not \\boxed{17}\nThe answer is 18.', '18', 0),
    ('17 or \\boxed{18}', '18', 0), ('\\boxed{x = 17 or x = 18}', '18', 0), ('#### x = 17, y = 18', '18', 0),
    ('\\boxed{x + y = 18}\nThe answer is 9.', '18', 0), ('\\boxed{\\text{Step 1}}\nThe answer is 9.', '1', 0),
    ('#### less than 18', '18', 0), ('The answer is more than 18.', '18', 0), ("#### '24'", '24', 1), ('Answer:\n```\n24\n```', '24', 1), ('\\boxed{18} or maybe 17', '18', 0),
    ('\\boxed{\\text{not enough information}}\nThe answer is 3.', '3', 0), ('\\boxed{\\text{seventeen}}\nThe answer is 3.', '3', 0),
    ('\\boxed{\\sqrt{9}}\nThe answer is 3.', '3', 0), ('\\boxed{18 million}\nThe answer is 18.', '18', 0),
    ('The answer is 17 or 18.\n<answer>18</answer>', '18', 0),
    ('The answer is 18. I doubt that the answer is right.', '18', 0),
    ('18. \\boxed{}', '18', 0), ('She has 18. <answer></answer>', '18', 0),
]
PLACES_MATH = [
    ('#### \\boxed{24}', '24', 1), ('<answer>**4**</answer>', '4', 1), ('Answer: `4`', '4', 1),
    ('**Answer:** **4**', '4', 1), ('<answer>Answer: 4</answer>', '4', 1), ('The answer is <b>4</b>', '4', 1),
    ('\\boxed{}\nThe answer is 5', '5', 1), ('\\boxed{\\text{answer}}\nThe answer is $5$.', '5', 1),
    ('<answer></answer>\nThe answer is 5', '5', 1), ('Answer:\n\n\\[ 5 \\]', '5', 1),
    ('Put it in \\boxed{}. \\boxed{5}', '5', 1), ('\\boxed{5}. It goes in \\boxed{}.', '5', 1),
    ('\\boxed{3}\nThe answer is 5', '5', 0), ('\\boxed{3 or 5}\nThe answer is 5', '5', 0),
    ('\\boxed{3} or \\boxed{5}\nThe answer is 5', '5', 0), ('3 or \\boxed{5}', '5', 0),
    ('\\boxed{5} or \\boxed{}', '5', 0), ('\\boxed{}', '5', 0), ('\\boxed{} 5', '5', 0), ('\\boxed{?}', '5', 0),
]
PLACES_MCQ = [
    ('We need \\boxed{\\langle x\\rangle \\gg k} to hold.\n\n**Answer: D**', 'D', 1),
    ('<answer>\\boxed{B}</answer>', 'B', 1), ('\\boxed{\\text{(D)}}', 'D', 1), ('Answer: `D`', 'D', 1),
    ('\\boxed{\\textbf{(B)}\\ 12}', 'B', 1), ('\\boxed{\\text{B}}', 'B', 1), ('\\boxed{\\mathrm{B}}', 'B', 1),
    ('\\boxed{\\textbf{B) } 12}', 'B', 1), ('\\boxed{\\text{Option B}}', 'B', 1), ('\\boxed{**B**}', 'B', 1),
    ('\\boxed{B. 12}', 'B', 1), ('\\boxed{B\\ 12}', 'B', 1), ('\\boxed{A\\quad B}', 'A', 0), ('\\boxed{(B) \\text{ birds}}', 'B', 1), ('#### \\boxed{B}', 'B', 1),
    ('<answer>**B**</answer>', 'B', 1), ('<answer>The answer is B</answer>', 'B', 1),
    ('<answer> B </answer>', 'B', 1), ('<answer>B) birds</answer>', 'B', 1), ('**Answer:** **(B)**', 'B', 1),
    ('\\boxed{}\nThe answer is B.', 'B', 1), ('<answer></answer>\nThe answer is B.', 'B', 1),
    ('\\boxed{12}\nAnswer: B', 'B', 1), ('\\boxed{x = 5}. So the answer is B.', 'B', 1),
    ('\\boxed{A \\cup B}\n\nAnswer: D', 'D', 1), ('\\boxed{A \\cup B}\n\nAnswer: D', 'A', 0),
    ('\\boxed{A + B}\nAnswer: D', 'A', 0), ('\\boxed{A = 5}\nAnswer: D', 'A', 0),
    # an answer that is there is decisive
    ('\\boxed{A}\nThe answer is B.', 'B', 0), ('\\boxed{A or B}\nThe answer is B.', 'B', 0),
    ('\\boxed{A} or \\boxed{B}\nThe answer is B.', 'B', 0), ('\\boxed{A} or B', 'A', 0),
    ('\\boxed{AB}\nThe answer is B.', 'B', 0), ('\\boxed{A,B}', 'A', 0), ('\\boxed{A}, \\boxed{B}', 'A', 0),
    ('<answer>A and B</answer>\nThe answer is B.', 'B', 0), ('A or \\boxed{B}', 'B', 0),
    ('\\boxed{E}\nThe answer is B.', 'B', 0), ('not \\boxed{B}', 'B', 0), ('\\boxed{\\text{not B}}', 'B', 0),
]
PLACES_COUNTDOWN = [
    ('<answer></answer>\n\\boxed{5*6+7}', 1), ('<answer>\\boxed{5*6+7}</answer>', 1), ('<answer>`5*6+7`</answer>', 1),
    ('<answer>$5 \\times 6 + 7$</answer>', 1), ('<answer>5×6+7</answer>', 1), ('<answer>7+(6*5)</answer>', 1),
    ('<answer>5*6+7</answer> <answer>5+6+7</answer>', 0), ('<answer>5+6+7</answer> \\boxed{5*6+7}', 0),
    ('<answer>5*6+7 or 7+5*6</answer>', 0), ('<answer>5*6+7+0</answer>', 0), ('<answer>37</answer>', 0),
    ('<answer>5**6+7</answer>', 0), ('<answer>5*6+7/0</answer>', 0), ('<answer>(5*6+7</answer>', 0),
    ('<think><answer>5*6+7</answer></think>', 0), ('<answer>-5*-6+7</answer>', 0),
]

# the article A, the pronoun I, a letter that is a part of a name
ARTICLES = [
    ('Answer: A mammal lays no eggs, so it must be C.', 'A', 0),
    ('Answer: A mammal lays no eggs, so it must be C.', 'C', 1),
    ('The answer is C, I checked it twice.', 'C', 1), ('The answer is C, I checked it twice.', 'I', 0),
    ('The answer is C and I am sure.', 'C', 1), ('The answer is C; I am sure.', 'C', 1),
    ('The answer is C (I checked).', 'C', 1), ('The answer is C, as I said.', 'C', 1),
    ('Answer: A. mammals', 'A', 1), ('Answer: A) mammals', 'A', 1), ('Answer: (A) mammals', 'A', 1),
    ('Answer: A: mammals', 'A', 1), ('Answer: A - mammals', 'A', 1), ('Answer: A, mammals', 'A', 1),
    ('The answer is A because mammals lay no eggs.', 'A', 1), ('The answer is A, because I say so.', 'A', 1),
    ('The answer is A since mammals lay no eggs.', 'A', 1), ('The answer is A.', 'A', 1),
    ('The answer is A', 'A', 1), ('The answer is A!', 'A', 1), ('The answer is A (mammals).', 'A', 1),
    ('The answer is A\n\nMammals lay no eggs.', 'A', 1), ('The answer is I.', 'I', 1),
    ('Answer: I think it is B', 'I', 0), ('Answer: I think it is B', 'B', 1),
    ('Answer: I believe the answer is B.', 'B', 1), ('Answer: I am not sure.', 'I', 0),
    ('Answer: I would say B', 'I', 0), ('The answer is I, for one, do not know.', 'I', 0),
    ('The answer is A given number.', 'A', 0), ('Answer: A rather large bird', 'A', 0),
    ('Answer: A-frame houses', 'A', 0), ('Answer: B cells make antibodies', 'B', 0),
    ('Answer: B12 is a vitamin', 'B', 0), ('Answer: C-section', 'C', 0), ("Answer: A's price", 'A', 0),
    ('\\boxed{A mammal}', 'A', 0), ('<answer>A bird lays eggs</answer>\nThe answer is B.', 'B', 1),
    ('<answer>A bird lays eggs</answer>\nThe answer is B.', 'A', 0), ('A mammal lays no eggs.', 'A', 0),
    ('I think so.', 'I', 0), ('Answer: a', 'A', 0), ('Answer: all of the above', 'A', 0),
    ('The answer is A as well as B', 'A', 0), ('The answer is D and I am certain.', 'D', 1), ("Answer: I'm sure it's B", 'I', 0),
    ('Answer: A man walks in, thus D.', 'A', 0), ('Answer: A man walks in, thus D.', 'D', 1), ('Answer: C major', 'C', 0),
    ('The answer is option B: birds lay eggs, and A is wrong.', 'B', 1), ('The answer is A and I', 'A', 0), ('Answer: A lot of birds', 'A', 0),
    ('The answer is D because (A) and (B) are false.', 'D', 1), ('The answer is B or something else.', 'B', 0),
    ('Answer: D) vitamin B', 'D', 1), ('Answer: D) vitamin B', 'B', 0), ('Answer: C) Vitamin D', 'C', 1),
]

# usual ways to name an option
NAMES = [
    'Therefore, B is the correct answer.', 'The answer is choice B.', 'The answer is option B.',
    'the correct option is (B)', 'The correct option is B.', 'The best choice is option B.', 'I choose B',
    'I choose option B.', "I'd go with B.", 'I would pick (B), because birds fly.', 'Option B is correct.',
    'Option (B) is the correct answer.', 'Choice B is right', 'B is right', '(B) is correct.', 'B is correct!',
    '**B** is the correct answer.', 'The best answer would be B.', 'The answer must be B.', 'Final answer: **B**',
    'My answer: B', '**Final Answer:** B', 'Correct answer: B', 'Correct Option: B', 'Answer - B', 'Answer B',
    'ANSWER: B', 'THE ANSWER IS B', 'Ans: B', 'answer: option (b)', 'Answer: (b)', 'Answer: [B]',
    'The answer, therefore, is B.', 'The answer to the question is B.', 'The correct answer is letter B.',
    'The correct answer is: B', 'The answer is (B) birds.', 'The answer is "B".', 'The answer is clearly B.',
    'A, C and D lay no eggs. So B.', 'Thus, it must be B.', 'Hence (B).', 'So the answer is:\n\nB',
    'A is wrong, so B is correct.', 'A is wrong, but B is right.', 'I think B is correct.',
    'B is the best answer because A, C and D are wrong.', 'The answer is B, not A.', 'The answer is B rather than A.',
    'B', '(B)', '**B**', 'B.', 'Option B', 'B) birds', 'B. birds lay eggs', 'B\n\nBirds lay eggs.',
    'Birds lay eggs.\n\n**B**', 'The only correct answer is B.', 'Only B is correct.', 'B would be the best choice.',
    'B is the answer.', 'We conclude that B is correct.', 'Overall, option B is the best answer.',
    'Conclusion: B', 'The correct one is B.', 'The best response is B.', 'The solution is B', 'The correct statement is B.', 'B is the most likely answer.',
    'The answer is B. The solution is simple.', 'B\n\nThe answer is clear.', 'The answer is B. This answer is supported by the text.', 'The answer is B.\n\nLet me know if you need more.',
]
HEDGES = [
    'B or C', 'either B or C', 'not B', 'B is incorrect', 'B is not the correct answer', 'The answer is B or C.',
    'The answer is either B or C.', 'The answer is not B.', 'The answer is B and C.', 'The answer is B/C.',
    'The answer is B, C.', 'The answer is (B) or (C).', 'The answer is **B** or **C**.', 'The answer is B, or C.',
    'The answer is B (or C).', 'The answer is B or possibly C.', 'The answer is B, maybe C.', 'Answer: B) birds or C) bats',
    'The answer is neither B nor C.', 'The answer is both B and C.', 'The answer is B is wrong.', "The answer isn't B.",
    'The answer cannot be B.', 'Option B is wrong.', 'B is not correct.', "I don't think B is correct.",
    'Neither A nor B is correct.', 'A or B is correct.', 'A and B is correct.', 'If B is correct, then so is C.',
    'Is B correct?', 'Maybe B is correct.', 'It is not true that B is the correct answer.', 'Some say B is correct.',
    'I would choose B if I had to.', 'I would not choose B.', "I'd never pick B.", 'I choose B or C.', 'I choose B and C.',
    'B is correct, or C.', 'B is correct? No.', 'B is correct. C is correct.', 'Both A and B are correct.',
    'Vitamin B is right.', 'Hepatitis B is the correct answer.', 'B is right-handed.', 'B could be the correct answer.',
    'A, B, C or D', 'A\nB\nC\nD', '(A)(B)', 'AB', 'Answer: AB', 'Answer: B?C', 'B is correct only if A is.',
    'Why B is correct', 'I do not know whether B is correct.', 'So it must be B or C.', 'So it is B or C.',
    'We choose B as the origin.', 'B is the best-known bird.', '', 'birds', 'The answer is birds.', 'b', 'I choose birds.',
    'B is correct about eggs, but C is the answer.', 'One of B and C is right.', 'B is better.', 'B is a bird.', '(B) is better.', '(B) is correct? No.', '**A** and **B** is correct.', '(B) could be the answer.',
    'The answer is A. Actually, no.', '(B) can never be true.', 'Answer choice: (B) can never be true',
]

# other currencies
CURRENCIES = [
    ('#### €18', '18', 1), ('#### 18€', '18', 1), ('#### £18.50', '18.5', 1), ('#### ¥1,800', '1800', 1),
    ('#### ₹18', '18', 1), ('#### 18 €', '18', 1), ('#### US$18', '18', 1), ('#### Rs. 18', '18', 1),
    ('#### Rs.18', '18', 1), ('#### 18 EUR', '18', 1), ('#### USD 18', '18', 1), ('She pays €18.', '18', 1),
    ('The answer is £18.', '18', 1), ('\\boxed{€18}', '18', 1), ('#### -€18', '-18', 1), ('#### A$18', '18', 1),
    ('\\boxed{\\$32,\\!348}', '32348', 1), ('\\boxed{\\$18.90}', '18.9', 1), ('#### €17 or €18', '18', 0),
    ('#### €18 million', '18', 0), ('#### €17, £18', '18', 0), ('#### €-18', '18', 0), ('#### €9+€9', '18', 0),
]

CASES = [('gsm8k', *case) for table in (HEADINGS_GSM8K, PLACES_GSM8K, CURRENCIES) for case in table]
CASES += [('math', *case) for table in (HEADINGS_MATH, PLACES_MATH) for case in table]
CASES += [('mcq', *case) for table in (HEADINGS_MCQ, PLACES_MCQ, ARTICLES) for case in table]
CASES += [('mcq', text, 'B', 1) for text in NAMES] + [('mcq', text, letter, 0) for text in NAMES for letter in 'ACDI']
CASES += [('mcq', text, letter, 0) for text in HEDGES for letter in 'BC' if text != 'B is correct about eggs, but C is the answer.']
CASES += [('countdown', text, '{"numbers": [5, 6, 7], "target": 37}', verdict) for text, verdict in PLACES_COUNTDOWN]


@pytest.mark.parametrize('kind, completion, truth, verdict', CASES, ids=lambda value: ascii(value)[:60])
def test_verdicts(kind, completion, truth, verdict):
    check_truth(kind, truth)
    assert verify(kind, completion, truth) == verdict


@pytest.mark.parametrize('text, after', [
    ('18', '18'), ('<think>17</think>18', '18'), ('17</think>18', '18'), ('<think>17', ''), ('17<think>18', ''),
    ('<think>a</think>b</think>18', '18'), ('<think>a</think>b<think>c</think>18', '18'),
    ('<think>a</think>17<think>18', ''), ('<think></think>18', '18'), ('<think>a<think>b</think>18', '18'),
    ('<think>a</think>I used the `<think>` tag: 18', 'I used the `<think>` tag: 18'),
    ('<think>I close with `</think>` and 18', ''), ('<think>a "</think>" b</think>18', '18'),
    ('[THINK]17[/THINK]18', '18'), ('17[/THINK]18', '18'), ('[THINK]17', ''), (' [THINK]17', ''),
    ('[THINK]a[/THINK]b[THINK]c', ''), ('So [THINK] is a word: 18', 'So [THINK] is a word: 18'),
    ('<thinking>17</thinking>18', '18'), ('◁think▷17◁/think▷18', '18'), ('<seed:think>17</seed:think>18', '18'),
    ('18\nNo [/THINK] is needed', '18\nNo [/THINK] is needed'), ('[THINK] 17 [/THINK] 18', ' 18'), ('17[/THINK]b[THINK]18', ''),
    ('<seed:think>17', ''), ('◁think▷17', '')])
def test_after_thinking(text, after):
    assert after_thinking(text) == after
    assert verify('gsm8k', text, '17') == 0 and verify('gsm8k', text, '18') == bool(after)


MEGABYTE = 10 ** 6
UNITS = ['\\boxed{}', '\\boxed{answer}', '\\boxed{A} or ', '<answer></answer>', '"</think>"', '`<think>`', '[THINK]', 'answer\n', '## answer\n',
         '#### A\n', '#### 5\n', '#### ', '####', 'B is ', 'B is correct. ', 'I choose ', 'so it is B. ', 'A or ', '(A)', 'A, ', 'answer to the ', 'option ',
         'answer is right. ', 'answer to to to to to to ', '**', '`', '_a_', 'Step 1 ', '1. ', '\n# 1', '€', '\\text{', '$', '~', 'x = 1, ', "'"]


@pytest.mark.parametrize('unit', UNITS, ids=ascii)
def test_hostile_megabytes(unit):
    """Nothing takes more than linear time: a megabyte takes about 20 ms, of which a slow machine may make many."""
    many = unit * (MEGABYTE // len(unit))
    for text in (many, '#### ' + many, 'Answer: ' + many.replace('\n', ' '), '\\boxed{' + unit * (3900 // len(unit)) + '}' + ' ' * MEGABYTE):
        for kind, truth in (('gsm8k', '7'), ('math', '7'), ('mcq', 'D'), ('countdown', '{"numbers": [7], "target": 7}'), ('sums', '7')):
            start = time.perf_counter()
            assert verify(kind, text, truth) == 0
            assert time.perf_counter() - start < 0.5, (kind, text[:20])


def test_boxes_of_one_sentence():
    assert boxed('\\boxed{1}. \\boxed{2} and \\fbox{3}') == '2,3' and boxed('\\boxed{2}\n\\boxed{2}') == '2'
    assert boxed('\\boxed{2}. \\boxed{}') == '2' and boxed('\\boxed{}') == '' and boxed('2') is None
    assert boxed('\\boxed{2} or 3') == boxed('not \\boxed{2}') == '?'
