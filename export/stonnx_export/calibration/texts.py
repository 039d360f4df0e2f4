"""Texts of many kinds for calibration: sentences, questions, passages, code, lists, messages, several languages.

They were written for this file, so that no text of a collection that models are measured on is among them. Real text
shows which channels of a network are large together, which random tokens do not.
"""

from __future__ import annotations

CALIBRATION_TEXTS = (
    "The museum opens at nine, but the queue usually starts an hour earlier.",
    "She put the kettle on, fed the cat and read yesterday's paper.",
    "Two lorries collided on the bridge this morning; nobody was hurt.",
    "The committee has decided to postpone the vote until after the summer.",
    "A boy in a yellow raincoat jumps from puddle to puddle.",
    "Prices rose by 3.4 percent in March, the fastest rise since 2011.",
    "He forgot his umbrella on the tram and walked home through the storm.",
    "The bakery on the corner sells out of rye bread before noon.",
    "Their first album sold forty copies, the second one four million.",
    "No one had expected the champion to lose in straight sets.",
    "Old photographs hang above the piano.",
    "Three women are folding sheets in the courtyard.",
    "A horse pulls a cart loaded with hay along a narrow lane.",
    "The bank raised its interest rate for the third time this year.",
    "We could hear the sea long before we could see it.",
    "The pilot apologised for the delay and blamed the fog.",
    "Scientists found traces of water in a rock from the far side of the moon.",
    "Her grandfather built this boat with his own hands.",
    "The minister resigned on Thursday after weeks of protests in the capital.",
    "A man slices an onion with a very sharp knife.",
    "I am not sure that this is what they wanted.",
    "Nothing happened.",
    "Thank you so much!",
    "Yes.",
    "ok, see you tomorrow then",
    "What is the difference between weather and climate?",
    "How long does it take to boil an egg at high altitude?",
    "Why do leaves change colour in autumn?",
    "how to remove red wine stain from carpet",
    "best budget laptop for students",
    "Where was the first underground railway built, and when?",
    "Which vitamins does the body make from sunlight?",
    "Can I use my driving licence abroad?",
    "who wrote the opera about the barber",
    "symptoms of iron deficiency in adults",
    "Is it possible to undo the last commit without losing my changes?",
    "What time does the pharmacy close on Sundays?",
    "Should I repair the old washing machine or buy a new one?",
    "python read csv file with missing header",
    "train from Vienna to Prague with a dog",
    "Does anybody know a quiet place to study near the station?",
    (
        "def mean(values):\n    total = 0.0\n    for value in values:\n        total += value\n    return total / "
        'len(values) if values else float("nan")'
    ),
    (
        "public static int indexOf(String[] names, String name) {\n    for (int i = 0; i < names.length; i++) {\n    "
        "    if (names[i].equals(name)) { return i; }\n    }\n    return -1;\n}"
    ),
    (
        "SELECT c.city, AVG(o.amount) AS average FROM orders AS o JOIN customers AS c ON c.id = o.customer_id WHERE "
        "o.date > '2020-01-31' GROUP BY c.city HAVING COUNT(*) > 10 ORDER BY average DESC;"
    ),
    (
        '<div class="card" id="main"><h2>Opening hours</h2><p>Mon-Fri: 8:30&ndash;17:00</p><a '
        'href="/contact">Write to us</a></div>'
    ),
    ('{"id": 4711, "name": "blue lamp", "price": 39.9, "tags": ["light", "desk"], "in_stock": true, "size": null}'),
    "$ tar -xzf archive.tar.gz && cd archive && ./configure --prefix=$HOME/local && make -j4 install",
    "TypeError: cannot read property 'length' of undefined at render (app.js:118:23)",
    'const result = await fetch(`${base}/users/${id}`, { method: "POST", body: JSON.stringify(user) });',
    '#include <stdio.h>\nint main(void) { printf("%d\\n", 6 * 7); return 0; }',
    'if err != nil { return nil, fmt.Errorf("open %s: %w", path, err) }',
    "2021-06-30 14:05:11,204 WARN [worker-3] retrying request 8f2c (attempt 2 of 5): timeout after 30 s",
    "f(x) = 3x^2 - 2x + 1, so f'(x) = 6x - 2 and the minimum is at x = 1/3.",
    "eggs, flour, butter, sugar, vanilla, salt, baking powder, lemons, cream",
    "- passport\n- charger\n- toothbrush\n- two pairs of socks\n- sunglasses",
    "1. Preheat the oven to 180 degrees. 2. Mix the dry ingredients. 3. Add milk and stir. 4. Bake for 35 minutes.",
    "Monday; Tuesday; Wednesday; Thursday; Friday; Saturday; Sunday",
    "cotton shirt, men, size L, navy blue, slim fit, machine washable, 29.95",
    "Wireless headphones with noise cancelling, 40 h battery, USB-C, foldable, black",
    "Copenhagen | Lisbon | Nairobi | Osaka | Quito | Reykjavik | Tashkent",
    "red green blue violet orange brown grey",
    "CEO; chief engineer; head of sales; trainee; night guard",
    "Chapter 7: The Garden Gate",
    "Annual report 2019, page 12 of 88",
    "Re: Fwd: invoice no. 20-0913, second reminder",
    (
        "Smith, J., and Rossi, M. (2008). Sleep and memory in older adults. Journal of Applied Neurology, 14(3), "
        "201-219."
    ),
    "+49 30 1234567, info@example.com, www.example.com/shop?item=12&lang=en",
    (
        "The lighthouse was built in 1846 from granite blocks that ships brought from the mainland. Its lamp burned "
        "whale oil at first, then paraffin, and since 1958 electricity. The last keeper left in 1987, when a "
        "computer took over his work. Today visitors climb its 214 steps in summer, and on clear days they can see "
        "three countries from the gallery. The foghorn is silent now; on foggy nights older people in the village "
        "say that they miss it."
    ),
    (
        "To change the filter, switch off the machine and wait until it has cooled down. Open the cover on the "
        "left-hand side by pressing both clips. Pull out the old filter, which may drip, and dispose of it with "
        "household waste. Rinse the new filter under cold water for one minute, push it in until it clicks, and "
        "close the cover. Hold the reset button for five seconds: the lamp must turn from red to green. If it does "
        "not, repeat these steps or call our service."
    ),
    (
        "Photosynthesis is the process by which green plants, algae and some bacteria turn light into chemical "
        "energy. In the first stage, pigments such as chlorophyll absorb light and water is split, which releases "
        "oxygen. In the second, carbon dioxide is fixed and reduced to sugars. Almost all life on earth depends, "
        "directly or indirectly, on this process. Its efficiency is low, usually between one and two percent, yet it "
        "binds more than a hundred billion tonnes of carbon every year."
    ),
    (
        "Patients who received the drug reported fewer headaches after twelve weeks than those in the control group "
        "(mean difference 1.8 days per month, 95% confidence interval 1.1 to 2.5, p < 0.001). Adverse events were "
        "mild and included nausea and dizziness. The study was limited by its small sample and by the short period "
        "of observation, and its authors received fees from the manufacturer."
    ),
    (
        "The tenant shall give notice in writing no later than three months before the end of the term. Unless "
        "otherwise agreed, the deposit, less the cost of repairs for which the tenant is liable, shall be returned "
        "within thirty days. Any amendment to this agreement, including this clause, requires the written consent of "
        "both parties. Should one provision prove invalid, the others remain in force."
    ),
    (
        "I bought this vacuum cleaner two months ago and I have mixed feelings. It's light, quiet and picks up dog "
        "hair really well, so that's great. But the battery lasts barely fifteen minutes, the bin is tiny, and "
        "customer service never answered my e-mail. For half the price I'd say go for it; at $400, no way. 3 out of "
        "5 stars."
    ),
    (
        '"Have you seen my keys?" he asked. "They were on the table," she said without looking up, "next to '
        'your coffee, as they are every morning." He laughed, kissed her on the forehead and ran down the stairs, '
        "late again. From the window she watched him stop, search his pockets, and turn round."
    ),
    (
        "The midfielder equalised in the 89th minute, and four minutes later a penalty decided the match: 2-1 for "
        'the visitors, who climb to third place. "We never stopped believing," said the coach. The home side, '
        "without a win since October, face the league leaders next Saturday, probably without their injured captain."
    ),
    (
        "The economy of the island rests on fishing, sheep and, more and more, on tourists who come for its cliffs "
        "and seabirds. About 900 people live there all year round, half of them in the harbour town. A ferry calls "
        "twice a week if the sea allows it. In winter, storms often cut the island off for days; freezers are large, "
        "and everybody knows how to repair an engine. The school has nineteen pupils and two teachers, and its "
        "football pitch is the only flat ground for miles."
    ),
    (
        "In this paper we study the convergence of a stochastic gradient method with adaptive step sizes for "
        "non-convex objectives. Under mild assumptions on the noise, we show that the expected norm of the gradient "
        "falls as O(1/sqrt(T)), and that the constant does not depend on the dimension. Experiments on image "
        "classification and on language modelling confirm the theory. Code is available."
    ),
    (
        "The senate approved the budget by 52 votes to 48 late on Friday, hours before the government would have run "
        "out of money. It includes 14 billion for roads and railways, cuts to farm subsidies, and a tax on plastic "
        "packaging. Economists doubt that the figures will hold: growth has slowed, and the price of oil has risen "
        "by a fifth since spring."
    ),
    "lol that movie was sooo bad, i want my 2 hours back!!! don't waste your $$",
    "just landed in #Tokyo, can't wait to try ALL the ramen :) @maria_g you coming?",
    (
        "Good morning, this is Ms Keller from the dental practice. I am calling to remind you of your appointment on "
        "Tuesday at half past ten."
    ),
    (
        "Dear Sir or Madam, I am writing to apply for the position of assistant librarian that was advertised on "
        "your website."
    ),
    "Great value, arrived on time, exactly as described.",
    "The food was cold and the waiter rude; we will not come back.",
    "Mix 200 g of flour with 3 eggs, half a litre of milk and a pinch of salt; let the batter rest for 20 minutes.",
    "BREAKING: earthquake of magnitude 6.1 shakes the coast, no reports of damage yet",
    "Mitochondria produce most of the cell's supply of adenosine triphosphate.",
    "The defendant pleaded not guilty to all four charges.",
    "A triangle whose sides are 3, 4 and 5 units long has a right angle.",
    "The treaty of 1648 ended thirty years of war in central Europe.",
    "Gold is a soft, dense metal with the atomic number 79.",
    "Mount Kilimanjaro (5,895 m) is the highest mountain in Africa.",
    "Mozart was born in Salzburg in 1756 and died in Vienna in 1791.",
    "The violinist tuned her instrument while the audience fell silent.",
    "Turn left at the roundabout, follow the river for two miles, and park behind the church.",
    "Insulin lowers the level of glucose in the blood.",
    "A recursive function calls itself until it reaches a base case.",
    "The shares fell 7% after the company cut its forecast.",
    "Wash at 40 degrees, do not bleach, iron on the reverse side.",
    "Love is not love which alters when it alteration finds.",
    "Der Zug nach Hamburg fährt heute von Gleis sieben und hat zwanzig Minuten Verspätung.",
    "Wie beantrage ich einen neuen Personalausweis, und was kostet das?",
    (
        "Im Herbst sammeln die Kinder Kastanien und basteln daraus kleine Tiere. Die "
        "Donaudampfschifffahrtsgesellschaft wurde 1829 gegründet."
    ),
    "Les enfants jouent dans la cour pendant que leur mère prépare le dîner.",
    "Quelle est la meilleure façon d'apprendre une langue étrangère ?",
    "El gobierno anunció ayer nuevas medidas para reducir la contaminación en las ciudades.",
    "¿Dónde puedo comprar entradas para el concierto de esta noche?",
    "La ricetta prevede quattro uova, un po' di zucchero e molta pazienza.",
    "O mercado abre às sete da manhã e fecha ao meio-dia.",
    "De fiets staat achter het huis, naast de oude appelboom.",
    "W sobotę pojedziemy nad jezioro, jeśli pogoda będzie ładna.",
    "Bugün hava çok güzel, deniz kenarında yürüyüşe çıkalım mı?",
    "Hôm nay trời mưa to nên chúng tôi ở nhà đọc sách.",
    "Flygplatsen är stängd på grund av snö.",
    "Поезд пришёл на станцию поздно вечером, когда уже стемнело.",
    "Как приготовить борщ без мяса?",
    "Το λεωφορείο φεύγει στις οκτώ από την πλατεία.",
    "החנות סגורה בשבת.",
    "المكتبة مفتوحة كل يوم من التاسعة صباحا حتى السادسة مساء.",
    "दिल्ली भारत की राजधानी है और यहाँ बहुत से लोग रहते हैं।",
    "我昨天在图书馆借了三本关于历史的书。",
    "请问去火车站怎么走？",
    "彼女は毎朝六時に起きて、犬と一緒に川まで散歩します。",
    "지하철에서 우산을 잃어버렸어요.",
    "รถไฟขบวนนี้ไปเชียงใหม่",
)
